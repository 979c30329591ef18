"""python -m tuning inspect: what a model will be given, a JSON line a sample, without a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from commands.tuning.common import add_settings, open_tokenizer, settings_of, write_lines
from runtime.arguments import CommandParser

ABOUT = """\
What a model will be given, a JSON line a sample, in the data set's order.

    python -m tuning inspect --task rte --data-dir RTE --split dev --cloze-eval --pattern-id 0 --tokenizer-type ...
"""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning inspect")
    add_settings(parser)
    parser.add_argument("--load", metavar="DIR", help="a checkpoint, where the tokenizer is its own")
    parser.add_argument("--examples", action="store_true", help="what was read from the files instead")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)

    from tuning.data.sample import Unbuildable, shown, shown_example
    from tuning.tasks import module_of

    module = module_of(settings.data.task)
    if arguments.examples:
        lines = [shown_example(example) for example in module.examples(settings)]
    else:
        samples = module.samples(settings, open_tokenizer(settings, arguments.load))
        lines = [shown(sample) for sample in samples]
        if missing := sum(isinstance(sample, Unbuildable) for sample in samples):
            print(f"{missing} of {len(samples)} rows cannot be built: see their errors", file=sys.stderr)
    write_lines(lines, arguments.output)
    return 0

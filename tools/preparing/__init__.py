"""From a task's public raw files to the evaluator's layout; see tools/prepare_data.py.

One data file per task, ``tools/preparing/<output with / as _>.yaml``:

    output: CLUE/ocnli            # folder below DATA_PATH; the `path` of the task file
    title: OCNLI
    source: https://...           # where the raw files are published
    licence: CC BY-NC 2.0
    note: ...                     # optional: what a reader of the score should know about the data
    where: ...                    # how to get the raw files; needed where there is no reader
    reader: chinese.ocnli         # function of tools/preparing/chinese.py; left out: we cannot prepare this task
    prompts:                      # one folder of files for each
      plain:
        inputs: "{sentence1} ... {sentence2}"      # -> inputs_pretokenized
        choices: ["yes", "no"]                     # -> choices_pretokenized; or "{choices}", the row's own list
        label: label                               # -> label: the field that holds the index of the right choice
        targets: "{answers}"                       # -> targets_pretokenized: a template or the row's own list
        example: "{sentence1} ... {answer}\n\n"    # see below
        keep: [genre]                              # fields that are written as they are

Templates are str.format over the fields of a row, plain names only; literal braces are doubled. A template that is
nothing but one field gives that field's value, a list included. If a row has the field ``examples`` (a list of rows)
and the prompt an ``example`` template, then ``{examples}`` in ``inputs`` is all of them rendered and joined. All keys
of a prompt are optional. A language modelling task has ``text`` in place of ``prompts``: file name -> split of the
reader.

A reader is a function ``(raw: Path) -> {split: [row, ...]}``, for ``text`` ``{split: str}``; ``raw`` is the folder
given with --raw. A split may hold slashes ("stem/anatomy"). tools/preparing/raw.py reads the usual formats and raises
MissingRawFile naming the file that is not there. Every row of the raw file is returned: one that cannot be evaluated
(no gold label) carries ``left_out``: the reason; it is not written, but counted and printed.

Written: ``DATA_PATH/<output>/<prompt>/<split>.jsonl``, or ``DATA_PATH/<output>/<file name>``, and ``SOURCE.txt`` with
source, licence and counts.
"""

"""Make a checkpoint of a training run: bfloat16 weights in SAT layout, vocabulary and model_config.json beside them.

    python tools/export_checkpoint.py --run run/ --vocabulary ice_text.model --output checkpoints/glm-small
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path


def export(run: Path, vocabulary: Path, output: Path, dtype: str) -> int:
    """Writes the checkpoint and returns its iteration, the number of steps trained."""
    import torch

    from glm.checkpoint import shard_name
    from glm.config import ModelConfig
    from glm.shard import save_checkpoint
    from runtime.errors import UserError
    from runtime.files import replacing
    from tuning.corpus_run import check_vocabulary

    state_file = run / "state.pt"
    if not state_file.is_file():
        raise UserError(f"no {state_file}: --run must be the --output folder of tools/pretrain.py")
    check_vocabulary(run, vocabulary)
    state = torch.load(state_file, map_location="cpu", weights_only=True, mmap=True)
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state["model"].items()}
    iteration = state["progress"]["step"]
    output.mkdir(parents=True, exist_ok=True)
    before = _iteration_before(output)
    with replacing(output / "ice_text.model") as temporary:
        shutil.copyfile(vocabulary, temporary)
    save_checkpoint(output, iteration, weights, ModelConfig.from_file(run / "model_config.json"))
    if before is not None and before.name != str(iteration):  # one iteration is shipped: of the export before ...
        (before / shard_name(0)).unlink(missing_ok=True)  # ... what it has written goes, and nothing else
        with contextlib.suppress(OSError):
            before.rmdir()
    return iteration


def _iteration_before(output: Path) -> Path | None:
    """The folder of an earlier export, or None; a link is none, since its files may belong to others."""
    from glm.checkpoint import LATEST, iteration_folder
    from runtime.errors import UserError

    if not (output / LATEST).is_file():
        return None
    try:
        found = iteration_folder(output)
    except UserError:
        return None
    return None if found.is_symlink() else found


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser

    parser = CommandParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--vocabulary", type=Path, required=True, help="its ice_text.model")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of weights")
    return parser


def main(arguments: list[str] | None = None) -> None:
    from runtime.program import FORESEEN, ended, terminating

    options = make_parser().parse_args(arguments)
    try:
        with terminating():
            iteration = export(options.run, options.vocabulary, options.output, options.dtype)
    except FORESEEN as error:
        sys.exit(ended(error, "the checkpoint that was there before is whole: give the same command again"))
    print(f"{options.output}: iteration {iteration}, {options.dtype}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)

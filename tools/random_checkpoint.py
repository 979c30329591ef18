"""Write a checkpoint of random weights in the layout in which models of GLM and ChatGLM-6B were published.

    python tools/random_checkpoint.py --model chatglm-6b --bits 4 --tokenizer FOLDER random-chatglm-6b-int4

For trying loading, memory and speed at a published model's real size: the answers mean nothing. Weights are float16, or
packed as ChatGLM-6B's INT8 and INT4 files are; a file takes 2 GB at most. FOLDER holds vocabulary files to copy.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

SHARD_BYTES = 2 << 30
FAMILIES = ("glm", "chatglm")
VOCABULARY_FILES = ("*.model", "tokenizer_config.json", "added_tokens.json", "vocab.*", "merges.txt")


def make_parser():
    from runtime.arguments import CommandParser

    parser = CommandParser(__doc__, prog="random_checkpoint.py")
    parser.add_argument("--model", required=True, metavar="NAME", help="a preset of the families glm and chatglm")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="packed linears (ChatGLM-6B)")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="vocabulary files to copy")
    parser.add_argument("output", type=Path, metavar="OUT", help="new folder")
    return parser


def tensors(config, bits: int | None) -> Iterator[tuple]:
    """(name, tensor) of the whole model, one after another."""
    import torch

    from glm import spec

    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(1 << 20, generator=generator) * 0.02).half()
    bytes_ = torch.randint(-128, 128, (1 << 20,), generator=generator, dtype=torch.int8)

    def filled(source: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return source.repeat(-(-count // len(source)))[:count].view(shape)

    for name, part in spec.expected(config).items():
        if part.packs and bits:
            rows, columns = part.shape
            yield name, filled(bytes_, (rows, columns * bits // 8))
            yield name + spec.SCALE, torch.full((rows,), 0.02 / (127 if bits == 8 else 7), dtype=torch.float16)
        elif len(part.shape) > 1:
            yield name, filled(block, part.shape)
        else:
            yield name, torch.full(part.shape, float(name.endswith("layernorm.weight")), dtype=torch.float16)


def write(output: Path, config, bits: int | None) -> int:
    """Files and their index; how many bytes."""
    from glm import families
    from runtime.files import write_torch

    shard, size, total = {}, 0, 0
    names: list[list[str]] = []

    def put_away() -> None:
        write_torch(output / f"part-{len(names)}.bin", shard)
        names.append(list(shard))
        shard.clear()

    for name, tensor in tensors(config, bits):
        if size and size + tensor.nbytes > SHARD_BYTES:
            put_away()
            size = 0
        shard[families.FAMILIES[config.family].published_name(name, {})] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    put_away()
    place = {}
    for number, each in enumerate(names):
        final = f"pytorch_model-{number + 1:05}-of-{len(names):05}.bin"
        (output / f"part-{number}.bin").rename(output / final)
        place |= dict.fromkeys(each, final)
    index = {"metadata": {"total_size": total}, "weight_map": place}
    (output / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return total


def main(argv: list[str] | None = None) -> int:
    arguments: argparse.Namespace = make_parser().parse_args(argv)
    from glm.checkpoint import config_to_publish
    from glm.config import ModelConfig
    from runtime.errors import UserError, printable
    from runtime.program import FORESEEN, ended

    try:
        config = ModelConfig.from_name(arguments.model)
        if config.family not in FAMILIES or (arguments.bits and config.family != "chatglm"):
            raise UserError(f"--model {arguments.model}: is of the family {config.family}; written are "
                            f"{', '.join(FAMILIES)}, with --bits ChatGLM-6B")
        arguments.output.mkdir(parents=True)
        total = write(arguments.output, config, arguments.bits)
        for pattern in VOCABULARY_FILES if arguments.tokenizer else ():
            for file in arguments.tokenizer.glob(pattern):
                shutil.copy(file, arguments.output)
        settings = config_to_publish(config, {}) | ({"quantization_bit": arguments.bits} if arguments.bits else {})
        (arguments.output / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        print(printable(f"{arguments.output}: {total / 1e9:.2f} GB"))
        return 0
    except FORESEEN as error:
        return ended(error)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)

"""The embedded model on this device, quantised while loading: do glm and generation work with the kernels?"""

from collections.abc import Iterator
from pathlib import Path

import torch

from tools.checking_gpu.setting import Setting, scheme_name

CHECKPOINT = Path(__file__).resolve().parent.parent.parent / "checkpoints" / "glm-small"
PROMPT = "Once upon a time, there was a little girl who lived [gMASK]"
ALLOWED = 0.02  # of the logits, root mean square; float16 alone makes some thousandths


def rows(setting: Setting) -> Iterator[dict]:
    """Logits in float16 beside those in float32, which torch computes from dequantised weights; an answer of both."""
    try:
        import glm.loading  # with SwissArmyTransformer, sentencepiece, ...
        from generation import SamplingParams, fill_blanks
    except ImportError as error:
        yield {"case": f"not checked: {error}", "right": True}
        return

    device = str(setting.device)

    def run(dtype: str, bits: int | None, group_size: int | None) -> tuple[torch.Tensor, str]:
        model, tokenizer = glm.load(CHECKPOINT, device, dtype, bits=bits, group_size=group_size)
        tokens = torch.tensor([tokenizer.encode(PROMPT)], device=device)
        positions = torch.arange(tokens.shape[1], device=device)[None]
        with torch.inference_mode():
            logits = model.logits(tokens, positions).cpu()
        [result] = fill_blanks(model, tokenizer, [PROMPT], SamplingParams(top_k=1, max_gen_length=12))
        return logits, result.text

    for bits, group_size in ((4, None), (8, None), (4, 32), (None, None)):
        if not setting.has_time:
            yield {"case": "not all cases: the time was over", "right": True}
            return
        exact, expected = run("float32", bits, group_size)  # which no kernel of ours computes on a GPU
        logits, text = run("float16", bits, group_size)
        error = ((logits - exact).square().mean() / exact.square().mean()).sqrt().item()
        yield {"case": "FP16" if bits is None else scheme_name(bits, group_size), "error of logits": error,
               "answer": text, "same in float32": text == expected, "right": error <= ALLOWED}

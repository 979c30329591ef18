"""Any text whatever: prompts, masks, options, queries of a session, the tokenizer, what it is not."""

import pytest
from hypothesis import strategies as st

from generation.blanks import fault, filled, joined, split
from generation.fill import fill_blanks
from generation.params import BeamParams, Options, SamplingParams
from generation.prompt_file import read_prompts
from generation.session import Session
from glm.tokenizers.icetk import BLANK_PIECES, COMMAND_PIECES, IcetkTokenizer
from runtime import parallel
from tests.fake_model import FakeModel
from tests.fuzzing import fuzz, only_user_errors, texts
from tests.golden_data import TOKENIZER

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
LOOK_ALIKES = (
    *MASKS, *COMMAND_PIECES,
    *BLANK_PIECES[:2],
    BLANK_PIECES[-1],
    "<|tab|>", "<n>", "<|blank_81|>", "<|blank_1|>", "<|blank_02|>", "</s>", "<unk>", "<s>", "<0x0A>", "<0xFF>",
    "[mask]", "[MASKS]", "[sMask]", "[ MASK]", "[GMASK]", "[xMASK]", "[[MASK]]",
    "[MASK",
    "MASK]",
    "［MASK］", "[MA\u200bSK]", "▁", "▁▁",
)
CHARACTERS = (
    "\ud800", "\udc80", "\udfff", "\x00",
    "\x1b[2J",
    "\r", "\r\n", "\n\n", "\t\t", "\x0b", "\x85", "\u2028", "\u202e", "\u2066", "\u200d", "\ufeff", "\ufffe",
    "\uffff", "\U0010ffff", "e\u0301", "ﬁ", "①", "Å", "한글", "👩‍👩‍👧‍👦", "🇨🇳", " " * 79, " " * 80, " " * 81,
    " " * 1000,
    "\u3000", "\xa0", "\u0300" * 50,
)
wild = st.lists(
    st.one_of(
        texts,
        st.sampled_from(LOOK_ALIKES), st.sampled_from(CHARACTERS), st.text("aA 。,[]<>|MASKgs_0\n\t", max_size=30),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return IcetkTokenizer(TOKENIZER / "ice_text.model", num_image_tokens=0)


@pytest.fixture(scope="module")
def one_process():
    if not parallel.is_started():
        parallel.start(1)


@fuzz(100, text=wild, linebreak=st.booleans(), whitespaces=st.booleans(), special=st.booleans(), prefix=st.booleans())
def test_any_text_is_encoded_and_comes_back(tokenizer, text, linebreak, whitespaces, special, prefix):
    """Decoding and encoding once more changes nothing; ids are the vocabulary's; lone surrogates are refused."""
    options = {
        "linebreak": linebreak, "whitespaces": whitespaces, "special_tokens": special, "add_dummy_prefix": prefix,
    }
    with only_user_errors("tokenizer: texts") as messages:
        ids = tokenizer.encode(text, **options)
        assert all(tokenizer.num_image_tokens <= token < tokenizer.num_tokens for token in ids)
        tokenizer.decode(ids, special_tokens=special)
        tokenizer.detokenize(ids)
    assert bool(messages) == any("\ud800" <= character <= "\udfff" for character in text)


@fuzz(
    100,
    text=st.text(
        st.characters(min_codepoint=33, max_codepoint=0x9FFF, exclude_categories=["C", "Z", "M"]), max_size=60
    ),
)
def test_what_is_decoded_is_encoded_the_same(tokenizer, text):
    TRIP = tokenizer.decode(tokenizer.encode(text))
    with only_user_errors("tokenizer: round trips") as messages:
        assert tokenizer.decode(tokenizer.encode(TRIP)) == TRIP
    assert not messages


@fuzz(100, ids=st.lists(st.one_of(st.integers(0, 25000), st.integers(0, 2**63)), max_size=60), special=st.booleans())
def test_any_ids_are_shown(tokenizer, ids, special):
    with only_user_errors("tokenizer: ids") as messages:
        for shown in (tokenizer.detokenize(ids), tokenizer.decode(ids, special_tokens=special)):
            shown.encode("utf-8")
    assert not messages


@fuzz(100, text=wild)
def test_any_prompt_is_cut_at_its_masks(tokenizer, text):
    with only_user_errors("prompts") as messages:
        fault(text)
        prompt = split(text, tokenizer)
        kind = next((mask for mask in MASKS if mask in text), "[gMASK]")
        assert prompt.kind == kind and prompt.num_blanks == max(1, text.count(kind))
        ids = prompt.input_ids([])
        assert ids[prompt.mask_position([])] == tokenizer.command(kind)
        assert ids.count(tokenizer.command(kind)) == prompt.num_blanks
        assert joined(prompt.typed, [filled([], tokenizer)] * prompt.num_blanks) == "".join(prompt.typed)
    assert not messages or "UTF-8" in messages[0]


@fuzz(
    100,
    rows=st.lists(
        st.one_of(st.binary(max_size=60), wild.map(lambda text: text.encode("utf-8", "surrogatepass"))), max_size=6
    ),
    with_id=st.booleans(),
)
def test_any_file_of_prompts_is_read_line_by_line(tmp_path_factory, rows, with_id):
    path = tmp_path_factory.getbasetemp() / "prompts.txt"
    path.write_bytes(b"\n".join(rows))
    with only_user_errors("files of prompts") as messages:
        lines = read_prompts(path, with_id)
        assert [line.number for line in lines] == list(range(1, len(lines) + 1))
        for line in lines:
            assert line.error is not None or fault(line.text) is None
    assert not messages or "empty" in messages[0]


OPTIONS = [*Options().values(), "--top-p", "Top_p", "temprature", "", "=", "strategy="]
VALUES = [
    "nan", "inf", "-inf", "1e308", "5e-324", "1e400", "0", "-1", "1", "2", "0.5", "none", "on", "BeamSearchStrategy",
    "BaseStrategy", "9" * 30, "9" * 5000, "1_0", "٣", "0x10", "2147483648", "1000000000", "true",
    "\x1b[31m",
]
commands = st.one_of(
    st.tuples(st.sampled_from(OPTIONS), st.one_of(st.sampled_from(VALUES), texts)).map(lambda p: f"/set {p[0]} {p[1]}"),
    st.sampled_from(["/show", "/reset", "/help", "/", "//", "/set", "/set x", "/SHOW", "/set seed"]),
    texts.map(lambda text: "/" + text),
)


@fuzz(60, lines=st.lists(st.one_of(commands, commands, wild, st.just("A house [MASK] the river.")), max_size=8))
def test_a_session_survives_whatever_is_typed(tokenizer, one_process, lines):
    """Every command and query is answered or refused with one line, and the session goes on to its end."""
    said, notes = [], []
    queue = iter(lines)

    def read():
        try:
            return next(queue)
        except StopIteration:
            raise EOFError from None

    model = FakeModel(vocab_size=tokenizer.num_tokens, max_sequence_length=24)
    with only_user_errors("sessions") as messages:
        options = Options().changed(seed=1, max_gen_length=3)
        Session(model, tokenizer, options, read, said.append, notes.append, False).run()
    assert not messages
    assert all("\n" not in note for note in notes)


whole = st.one_of(st.integers(-1, 5), st.sampled_from([2**31, 2**63, 10**30]), st.none())
real = st.one_of(st.floats(), st.floats(0, 3), st.sampled_from([1e308, 5e-324, 10**400]), st.integers())


@fuzz(
    60,
    kind=st.sampled_from([SamplingParams, BeamParams]),
    values=st.fixed_dictionaries(
        {},
        optional={
            "temperature": real, "top_k": whole, "top_p": real, "num_beams": whole, "length_penalty": real,
            "seed": whole, "no_repeat_ngram_size": whole, "min_gen_length": whole, "max_gen_length": whole,
            "out_seq_length": whole, "stochastic": st.booleans(),
        },
    ),
    batch=st.sampled_from([None, 1, 2]),
)
def test_any_options_answer_or_are_refused(tokenizer, kind, values, batch):
    known = {name: value for name, value in values.items() if name in kind.__dataclass_fields__}
    model = FakeModel(vocab_size=tokenizer.num_tokens, max_sequence_length=16)
    with only_user_errors("options of generation"):
        results = fill_blanks(model, tokenizer, ["A [MASK] b [MASK]", "c"], kind(**known), batch_size=batch)
        assert all(result.error or result.beams for result in results)

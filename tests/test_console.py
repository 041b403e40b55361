# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Text as it is decoded: what is printed is what the tokenizer decodes, and green is what the trace says."""

import io
import random
import re
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList

from ppow_hf import GenerationTrace, TreeConfig, WindowConfig
from ppow_hf.console import Decoded, MarkedStreamer, figures_table
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_causal_drafter

WORDS = ["▁Hello", "▁world", "!", "▁", "▁▁▁", "\n", "▁naïve", "x", "é"]


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Decodes as Llama 2's and Mistral's do: spaces are part of tokens, the first one is dropped, bytes make up what
    is no token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>", byte_fallback=True
        )
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Decodes as GPT-2's, Llama 3's and Qwen's do, every token a byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE(vocab={**vocabulary, "</s>": 256}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def terminal() -> Console:
    """Narrow, so that a line broken at its width would be noticed."""
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=20, highlight=False)


def marked(console: Console) -> list[tuple[str, bool]]:
    """Every printed character, and whether it is green."""
    found, green = [], False
    for part in re.split(r"(\x1b\[[0-9;]*m)", console.file.getvalue()):
        if part.startswith("\x1b"):
            green = "32" in part[2:-1].split(";")
        else:
            found += [(character, green) for character in part]
    return found


def printed(tokenizer, parts: list[list[int]]) -> str:
    """What a terminal shows of a prompt and these commits, without the line break at the end."""
    console = terminal()
    streamer = MarkedStreamer(tokenizer, console, SimpleNamespace(last_trace=None))
    for part in ([7, 8], *parts):
        streamer.put(torch.tensor([part]))
    streamer.end()
    text = "".join(character for character, _ in marked(console))
    assert text.endswith("\n")
    return text[:-1]


def test_spaces_between_words_are_kept():
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["▁Hello", "▁world", "!"])
    for parts in ([ids], [[i] for i in ids], [ids[:1], ids[1:]]):
        assert printed(tokenizer, parts) == "Hello world!"


@pytest.mark.parametrize("make_tokenizer", [sentencepiece_tokenizer, byte_level_tokenizer])
def test_what_is_printed_is_what_the_whole_text_decodes_to(make_tokenizer):
    tokenizer, draw = make_tokenizer(), random.Random(0)
    sentencepiece = make_tokenizer is sentencepiece_tokenizer

    def some_tokens() -> list[int]:
        text = draw.choice(["é", "€", "🦜", "a", "\n", "  ", "</s>"])
        if sentencepiece and draw.random() < 0.6:
            return tokenizer.convert_tokens_to_ids([draw.choice(WORDS)])
        if text == "</s>":
            return [tokenizer.eos_token_id]
        # The bytes of one character, whole: of broken ones even the whole text is a matter of taste.
        names = [f"<0x{byte:02X}>" for byte in text.encode()]
        return tokenizer.convert_tokens_to_ids(names) if sentencepiece else list(text.encode())

    for _ in range(200):
        ids = [token for _ in range(draw.randrange(1, 12)) for token in some_tokens()]
        cuts = sorted(draw.sample(range(1, len(ids)), draw.randrange(len(ids)))) if len(ids) > 1 else []
        parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
        assert printed(tokenizer, parts) == tokenizer.decode(ids, skip_special_tokens=True), (ids, parts)


@pytest.mark.parametrize("make_tokenizer", [sentencepiece_tokenizer, byte_level_tokenizer])
def test_a_character_that_never_ends_is_printed_at_the_end(make_tokenizer):
    tokenizer = make_tokenizer()
    bytes_ = [0xE2, 0x82]  # of €, without its last
    half = (
        tokenizer.convert_tokens_to_ids([f"<0x{b:02X}>" for b in bytes_]) if "<s>" in tokenizer.get_vocab() else bytes_
    )
    x = tokenizer.convert_tokens_to_ids("x")
    expected = tokenizer.decode([x, *half])
    assert expected.startswith("x") and len(expected) > 1
    assert printed(tokenizer, [[x], half]) == printed(tokenizer, [[x, *half]]) == expected


def test_a_streamer_can_be_used_again():
    tokenizer, console = sentencepiece_tokenizer(), terminal()
    streamer = MarkedStreamer(tokenizer, console, SimpleNamespace(last_trace=None))
    for _ in range(2):
        streamer.put(torch.tensor([[7, 8]]))
        streamer.put(torch.tensor([tokenizer.convert_tokens_to_ids(["▁Hello", "▁world"])]))
        streamer.end()
    assert "".join(character for character, _ in marked(console)) == "Hello world\n" * 2


# ---- colours -------------------------------------------------------------------------------------------------------


def from_the_trace(trace: GenerationTrace, output: torch.Tensor, prompt_length: int, tokenizer) -> list[tuple]:
    """Every character of the text and whether a draft made it, by the trace; every token is one character."""
    flags = [False] * trace.prefill_tokens
    for cycle in trace.cycles:
        flags += [True] * cycle.accepted + [False] * (cycle.committed - cycle.accepted)
    ids = output[0, prompt_length:].tolist()
    characters = [tokenizer.decode([token], skip_special_tokens=True) for token in ids]  # none for ids without a token
    return [(character, flag) for character, flag in zip(characters, flags, strict=True) if character]


class EndsWith(StoppingCriteria):
    """Stops at a token, as a stop string does: inside what a window committed."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


@pytest.fixture(scope="module")
def pair():
    """A drafter that is often right: the target itself, with some noise."""
    target = char_target()
    drafter = tiny_causal_drafter(target, num_layers=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.copy_(parameter + 0.02 * torch.randn(parameter.shape, generator=generator))
    return target, drafter


PROMPT = torch.tensor([[40, 41, 42, 43, 44, 45]])


def stream(pair, window, **options):
    target, drafter = pair
    tokenizer, console = char_tokenizer(), terminal()
    output = target.generate(
        PROMPT,
        assistant_model=drafter,
        window=window,
        streamer=MarkedStreamer(tokenizer, console, drafter),
        **{"max_new_tokens": 40, "do_sample": False, **options},
    )
    shown = marked(console)
    assert shown.pop()[0] == "\n"
    return shown, from_the_trace(drafter.last_trace, output, PROMPT.shape[1], tokenizer), output, drafter.last_trace


# Windows whose size no measured cost decides, so that every run sees the same text cut in the same places.
CHAIN = WindowConfig(policy="fixed", size=4)
TREE = WindowConfig(policy="fixed", size=4, tree=TreeConfig(max_nodes=10, max_depth=4, branching=3))
LOOKUP = WindowConfig(policy="fixed", size=4, proposals="lookup")


@pytest.mark.parametrize("window", [CHAIN, TREE, LOOKUP], ids=["chain", "tree", "lookup"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_green_is_what_was_drafted_and_accepted(pair, window, do_sample):
    shown, expected, _, trace = stream(pair, window, do_sample=do_sample)
    assert shown == expected
    assert (trace.accepted > 0 or (window is LOOKUP and do_sample)) and not all(green for _, green in shown)


@pytest.mark.parametrize(
    ("window", "how"),
    # Criteria of the user's are asked once per cycle behind chains, where only the end of text cuts inside of one.
    [(CHAIN, "end of text"), (TREE, "end of text"), (TREE, "stopping criterion")],
    ids=["chain, end of text", "tree, end of text", "tree, stopping criterion"],
)
def test_an_accepted_token_that_ends_the_text_is_green(pair, window, how):
    _, _, output, trace = stream(pair, window)
    # Tokens that are accepted drafts with another behind them, so that a text may end on one.
    ends, position = [], PROMPT.shape[1] + trace.prefill_tokens
    for cycle in trace.cycles:
        ends += [int(output[0, position + i]) for i in range(cycle.accepted - 1)]
        position += cycle.committed
    seen = []
    for token in dict.fromkeys(ends):
        if how == "end of text":
            options = {"eos_token_id": token}
        else:
            options = {"stopping_criteria": StoppingCriteriaList([EndsWith(token)])}
        shown, expected, output, trace = stream(pair, window, **options)
        assert shown == expected
        seen.append(trace.cycles != [] and trace.cycles[-1].bonus is None)
    assert any(seen)


# ---- figures -------------------------------------------------------------------------------------------------------


def test_a_text_without_a_window_has_no_figures():
    rows = [("plain", Decoded([2], "", 0.5), None), ("speculative", Decoded([2], "", 0.25), GenerationTrace())]
    console = Console(file=io.StringIO(), width=120)
    console.print(figures_table(rows, title="0 verifications"))
    lines = [line for line in console.file.getvalue().splitlines() if "plain" in line or "speculative" in line]
    assert [[cell.strip() for cell in line.strip("│").split("│")] for line in lines] == [
        ["plain", "1", "0.50", "2.0", "1.00x", "-", "-"],
        ["speculative", "1", "0.25", "4.0", "2.00x", "-", "-"],
    ]


def test_one_way_alone_has_no_speedup():
    console = Console(file=io.StringIO(), width=120)
    console.print(figures_table([("speculative", Decoded([2], "", 0.25), GenerationTrace())], title="alone"))
    (line,) = [line for line in console.file.getvalue().splitlines() if "speculative" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")][3:5] == ["4.0", "-"]

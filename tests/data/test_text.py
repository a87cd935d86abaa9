"""Texts: tokens that give back what they were made of, splits that do not overlap, and what is wrong with a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tokenizers
import torch
from torch import nn

from deepres import DeepresError
from deepres.data import BytePairs, Characters, Data, Loader, Prepare, Tokens, open_data, train_byte_pairs
from deepres.data.text import is_text
from deepres.data.vocabulary import END, PIECE, _pieces
from deepres.evaluation import measure

PLAY = "to be, or not to be: that is the question.\n" * 40
FOREIGN = "déjà vu, 北京市 and 🙂 \t\n  twice\n"


def read_back(data: Data, split: str) -> str:
    assert isinstance(data.prepare, Tokens) and data.prepare.vocabulary is not None
    return data.prepare.vocabulary.decode(getattr(data, split).pixels.flatten().tolist())


def test_a_text_becomes_characters_and_what_comes_next(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY)
    data = open_data(tmp_path / "play.txt", size=16)
    assert data.is_text and data.classes == tuple(sorted(set(PLAY))) and str(data).endswith("16 tokens each")
    read = [read_back(data, split) for split in ("train", "val", "test")]
    assert all(part in PLAY for part in read) and PLAY.startswith(read[0])  # each is a piece of the text in its own order
    assert len(read[0]) + len(read[1]) + len(read[2]) > 0.9 * len(PLAY)
    for part in (data.train, data.val, data.test):
        assert torch.equal(part.labels[:, :-1], part.pixels[:, 1:])
    batch = next(Loader(data.train, data.prepare, 4).epoch(0))
    assert batch.images.shape == batch.labels.shape == (4, 16) and batch.images.dtype == batch.labels.dtype == torch.int64
    assert Prepare.from_notes(json.loads(json.dumps(data.prepare.to_notes()))) == data.prepare


def test_byte_pairs_give_every_text_back_and_are_learnt_from_the_training_part_alone(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY + "Zounds! " * 20)  # at the end, so in no training piece
    data = open_data(tmp_path / "play.txt", size=8, tokens="bpe:300")
    tokens = data.prepare.vocabulary
    assert isinstance(tokens, BytePairs) and len(data.classes) == len(tokens) <= 300 and data.train.pixels.dtype == torch.int32
    assert tokens.decode(tokens.encode(FOREIGN)) == FOREIGN and len(tokens.encode("question")) < 4 < len(
        tokens.encode("Zounds")
    )
    assert tokens == open_data(tmp_path / "play.txt", size=8, tokens="bpe:300").prepare.vocabulary
    assert Prepare.from_notes(json.loads(json.dumps(data.prepare.to_notes()))) == data.prepare
    assert PLAY.startswith(read_back(data, "train"))
    assert tokens.lengths[tokens.encode(FOREIGN)].sum() == len(FOREIGN.encode())
    # a text that spells the end out is text
    assert tokens.end not in tokens.encode(END).tolist() and tokens.decode(tokens.encode(END)) == END


def test_a_text_comes_out_as_soon_as_its_characters_are_complete() -> None:
    tokens = train_byte_pairs(["a"], 257)  # a token for each byte
    stream = tokens.stream()
    parts = [stream.push(token) for token in tokens.encode("é🙂")]
    assert parts == ["", "é", "", "", "", "🙂"] and stream.close() == ""
    stream.push(int(tokens.encode("é")[0]))
    assert stream.close() == "\ufffd"


def test_tokens_of_hugging_face_files(tmp_path: Path) -> None:
    """As Llama's: a word's first token begins with U+2581, and bytes are the last resort."""
    words = {
        "<unk>": 0,
        "</s>": 1,
        **{f"<0x{i:02X}>": 2 + i for i in range(256)},
        "\u2581to": 258,
        "\u2581": 259,
        "t": 260,
        "o": 261,
    }
    made = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokens = BytePairs.read(tmp_path / "tokenizer.json", 300)
    assert tokens.decode(tokens.encode("to é🙂 t")) == "to é🙂 t" and tokens.end == 1 and tokens.bytes_of(1) == b""
    assert len(tokens) == 300 and tokens.names[299] == "<unused 299>" and tokens.bytes_of(299) == b""
    wordy = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "[UNK]": 1}, "[UNK]"))
    wordy.save(str(tmp_path / "words.json"))
    (tmp_path / "broken.json").write_text("{}")
    for name, says in (("words", "cannot be read back"), ("broken", "not the definition"), ("none", "not a tokenizer.json")):
        with pytest.raises(DeepresError, match=says):
            BytePairs.read(tmp_path / f"{name}.json")


def test_documents_are_whole_and_in_one_split(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i} is about {chr(97 + i % 26) * 30}. "}) for i in range(60)]
    (tmp_path / "some.jsonl").write_text("\n".join(lines) + "\n")
    data = open_data(tmp_path / "some.jsonl", size=8)
    assert data.classes[-1] == END
    numbers = [
        {word for word in read_back(data, split).replace(".", " ").split() if word.isdecimal()} for split in ("val", "test")
    ]
    assert numbers[0] and numbers[1] and not numbers[0] & numbers[1]
    end = data.prepare.vocabulary.end
    assert int((data.train.pixels == end).sum()) in range(40, 56) and data.prepare.vocabulary.bytes_of(end) == b""


def test_folders_of_texts_name_splits_by_files_or_folders(tmp_path: Path) -> None:
    for name, text in (
        ("train/a.txt", "aaab" * 50),
        ("train/b.txt", "bbba" * 50),
        ("val.txt", "abab" * 20),
        ("test.jsonl", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text or json.dumps({"text": "baba" * 20}))
    (tmp_path / "README.md").write_text("about it")
    data = open_data(tmp_path, size=8)
    assert read_back(data, "train").startswith("aaab") and "bbba" in read_back(data, "train")
    assert (read_back(data, "val")[:8], read_back(data, "test")[:8]) == ("abababab", "babababa")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(DeepresError):  # now it is no folder of texts
        open_data(tmp_path, size=8)


class Fixed(nn.Module):
    """Gives the same logits everywhere."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*x.shape, -1)


def test_bits_per_byte_do_not_depend_on_the_tokens(tmp_path: Path) -> None:
    """A model that knows nothing but each token's share of the text: by hand, bits of all tokens by bytes of the text."""
    (tmp_path / "text.txt").write_text(FOREIGN * 60, encoding="utf-8")
    for how in ("characters", "bpe:280"):
        data = open_data(tmp_path / "text.txt", size=8, tokens=how)
        labels = data.test.labels.long()
        shares = torch.bincount(labels.flatten(), minlength=len(data.classes)).double() + 1e-9
        shares /= shares.sum()
        found = measure(Fixed(shares.log().float()), data.test, data.prepare, data.classes)
        bits = -float(shares[labels].log2().sum())
        text = data.prepare.vocabulary.decode(labels.flatten().tolist())
        assert found.bits_per_byte == pytest.approx(bits / len(text.encode("utf-8", "replace")), rel=0.02)
        assert found.loss == pytest.approx(bits * math.log(2) / labels.numel(), rel=1e-5)
        assert found.n == labels.numel() and sum(map(sum, found.confusion)) == found.n


def test_many_tokens_have_no_table_of_confusions(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(map(chr, range(1000, 3000))) * 3, encoding="utf-8")
    data = open_data(tmp_path / "text.txt", size=8)
    found = measure(Fixed(torch.zeros(len(data.classes))), data.test, data.prepare, data.classes)
    assert found.confusion == [] and found.loss == pytest.approx(math.log(2000), rel=1e-5) and found.top1 > 99


def test_bad_texts_get_a_sentence(tmp_path: Path) -> None:
    for name, content, says in (
        ("short.txt", b"to be", "too few"),
        ("empty.txt", b"", "empty"),
        ("picture.txt", b"to be " * 9 + bytes(range(128, 256)), r"picture.txt: not UTF-8 at byte 54"),
        ("cut.jsonl", b'{"text": "to be"}\n{"text": 3}', r"cut.jsonl, line 2: not a JSON object with a 'text'"),
        ("wide.txt", "to be".encode("utf-16-le"), "wide.txt: a null byte at 1"),
        ("play.txt.gz", b"\x1f\x8b", "a compressed text; unpack it"),
        ("list.jsonl", b"[1]", "not a JSON object"),
        ("lone.jsonl", b'{"text": "to be"}\n{"text": "\\ud800"}', r"line 2"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DeepresError, match=says):
            open_data(tmp_path / name)
    (tmp_path / "play.txt").write_text(PLAY)
    for how, says in (("bpe:9", "257 or more"), ("bpe:many", "number of tokens"), ("nowhere.json", "neither 'characters'")):
        with pytest.raises(DeepresError, match=says):
            open_data(tmp_path / "play.txt", tokens=how)
    with pytest.raises(DeepresError, match=r"'q' at position 34 is none of the network's 3 characters"):
        Characters("abc").encode("abc" * 11 + "aq")
    with pytest.raises(DeepresError, match=r"play.txt: the character 't' at position 0"):
        open_data(tmp_path / "play.txt", tokens=Characters("abc"))


def test_half_a_character_is_refused_with_a_sentence() -> None:
    """A prompt on the command line that is no UTF-8 becomes such a text, and JSON may hold one."""
    for tokens in (Characters("abc"), train_byte_pairs(["abc"], 257)):
        with pytest.raises(DeepresError, match=r"'\\ud800' at position 2"):
            tokens.encode("ab\ud800")


def test_a_long_text_is_cut_behind_lines() -> None:
    """Into parts that are encoded on their own, each in time that grows with the part and not with the text."""
    for text in ("", "a\n", "a" * 3 * PIECE, ("b" * 99 + "\n") * (PIECE // 40), "c" * PIECE + "\n" + "d" * 9):
        parts = _pieces(text)
        assert "".join(parts) == text and all(0 < len(part) <= PIECE for part in parts)
        assert len(parts) <= 1 + 2 * len(text) // PIECE
        assert "\n" not in text[PIECE // 2 : PIECE] or all(part.endswith("\n") for part in parts)


def test_a_definition_of_tokens_is_found_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "play.txt").write_text(PLAY)
    monkeypatch.setenv("HOME", str(tmp_path))
    tokens = train_byte_pairs([PLAY], 270)
    (tmp_path / "tokens.json").write_text(tokens.to_notes()["tokenizer"])
    assert is_text("~/play.txt") and open_data("~/play.txt", size=8, tokens="~/tokens.json").prepare.vocabulary == tokens


def test_byte_pairs_are_found_once_for_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start reads the kept tokens: equal to the bit, until text or tokens change, and made again where the file is damaged."""
    monkeypatch.setenv("DEEPRES_CACHE", str(tmp_path / "cache"))
    play = tmp_path / "play.txt"
    play.write_text("to be, or not to be: that is the question.\n" * 60)
    first = open_data(play, size=8, tokens="bpe:270")
    kept = list((tmp_path / "cache" / "texts").iterdir())
    again = open_data(play, size=8, tokens="bpe:270")
    assert [one.suffix for one in kept] == [".npz"] and again.prepare.vocabulary == first.prepare.vocabulary
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(first, split).pixels, getattr(again, split).pixels)
        assert torch.equal(getattr(first, split).labels, getattr(again, split).labels)
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    assert torch.equal(open_data(play, size=8, tokens="bpe:270").train.pixels, first.train.pixels)
    play.write_text("that is another question.\n" * 100)
    assert read_back(open_data(play, size=8, tokens="bpe:270"), "train").startswith("that is another")
    assert len(list((tmp_path / "cache" / "texts").iterdir())) == 2

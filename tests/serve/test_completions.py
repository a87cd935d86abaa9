"""The completions route through OpenAI's own client, over loopback: streams, batches that change, load, and clients that leave."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from running import Server, start, wait_until

import deepres
from deepres.cli.main import main
from deepres.evaluation.sampling import Sampling
from deepres.models.language import open_language_model
from deepres.serve.continuous import ContinuousBatching, Piece, SequencesFull

LETTERS = "\n abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = deepres.create(
        "llama-tiny", depth=1, width=16, heads=2, kv_heads=1, hidden=32, vocabulary=len(LETTERS), context=4000
    )
    prepare = {"size": 4000, "channels": 0, "tokens": {"kind": "characters", "names": list(LETTERS)}}
    return deepres.save(model, tmp_path_factory.mktemp("net") / "letters.safetensors", classes=list(LETTERS), prepare=prepare)


@pytest.fixture(scope="module")
def served(net: Path) -> Iterator[Server]:
    one = start(net, "--batch", "2", "--queue", "2")
    yield one
    one.process.kill()
    one.process.communicate()


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def ask(served: Server) -> Iterator[openai.OpenAI]:
    with client(served) as made:
        yield made


def alone(net: Path, prompt: str, **options: object) -> str:
    return "".join(deepres.generate(net, prompt, **options))


def test_the_answer_is_what_generate_writes(ask: openai.OpenAI, net: Path) -> None:
    assert [model.id for model in ask.models.list()] == ["letters.safetensors"]
    made = ask.completions.create(model="letters", prompt="to be", max_tokens=20, temperature=0)
    assert made.choices[0].text == alone(net, "to be", max_tokens=20, temperature=0)
    assert made.choices[0].finish_reason == "length" and made.usage.completion_tokens == 20 and made.usage.prompt_tokens == 5
    with ask.completions.create(model="", prompt="to be", max_tokens=20, seed=4, stream=True, echo=True,
                                stream_options={"include_usage": True}) as stream:  # fmt: skip
        chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "to be" + alone(net, "to be", max_tokens=20, seed=4)
    assert len(chunks) >= 20 and chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage.total_tokens == 25


def test_several_prompts_and_stop_words(ask: openai.OpenAI, net: Path) -> None:
    word = alone(net, "to be", max_tokens=20, temperature=0)[4:7]
    made = ask.completions.create(model="", prompt=["to be", "or"], n=2, max_tokens=20, temperature=0, stop=[word, "\n"])
    expected = [alone(net, prompt, max_tokens=20, temperature=0, stop=(word, "\n")) for prompt in ("to be", "or")]
    assert [choice.text for choice in made.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3] and made.choices[0].finish_reason == "stop"


def test_load_is_refused_and_a_client_that_leaves_makes_room(served: Server, ask: openai.OpenAI) -> None:
    streams = [ask.completions.create(model="", prompt="to", max_tokens=3900, stream=True) for _ in range(4)]
    for stream in streams[:2]:  # two run; the others wait until one of them leaves
        next(iter(stream))
    wait_until(lambda: served.metric("deepres_waiting_sequences") == 2)
    with pytest.raises(openai.InternalServerError) as refused:
        ask.completions.create(model="", prompt="to", max_tokens=5)
    assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    wait_until(lambda: served.metric("deepres_running_sequences") == served.metric("deepres_waiting_sequences") == 0)
    assert served.metric("deepres_tokens_total") < 2 * 3900  # they did not run to their ends
    assert ask.completions.create(model="", prompt="to", max_tokens=3, temperature=0).usage.completion_tokens == 3


def test_a_client_that_leaves_before_its_whole_answer_makes_room_too(served: Server) -> None:
    body = b'{"prompt": "to", "max_tokens": 3900}'
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        wait_until(lambda: served.metric("deepres_running_sequences") == 1)
    wait_until(lambda: served.metric("deepres_running_sequences") == 0)
    assert served.metric('deepres_requests_total{status="499"}') >= 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": "To"}, "the character 'T' at position 0"),
        ({"prompt": "a" * 4001}, "the context of letters.safetensors is 4,000"),
        ({"prompt": []}, "between 1 and 64 texts"),
        ({"prompt": "a", "n": 65}, "between 1 and 64 texts"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: "),
        ({"prompt": "a", "temperature": -1}, "temperature: "),
        ({"prompt": "a", "stop": ""}, "stop word"),
        ({"prompt": "a", "logprobs": 3}, "logprobs: is not supported"),
        ({"prompt": 3}, "prompt: "),
    ],
)
def test_bad_requests_are_named(served: Server, ask: openai.OpenAI, fields: dict[str, object], says: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask.completions.create(model="", **fields)  # type: ignore[arg-type]
    assert says in refused.value.body["message"]
    status, text = served.ask("/v1/completions", b"")
    assert status == 400 and "the body is empty" in text


def test_sequences_that_share_a_batch_do_not_change_each_other(net: Path) -> None:
    """More sequences than slots, of many lengths: each is what it would be alone."""
    language = open_language_model(net)
    engine = ContinuousBatching(language, slots=3, queue=20)
    texts, done = [""] * 9, [threading.Event() for _ in range(9)]

    def deliver(index: int, piece: Piece) -> None:
        texts[index] += piece.text
        if piece.finish is not None:
            done[index].set()

    options = [Sampling(max_tokens=5 + 4 * i, temperature=0.5 * (i % 3), seed=i) for i in range(9)]
    for i, how in enumerate(options):
        engine.submit(language.prompt("to be or not"[: 1 + i]), how, lambda piece, i=i: deliver(i, piece))
    assert all(one.wait(60) for one in done)
    assert texts == ["".join(deepres.generate(language, "to be or not"[: 1 + i], how)) for i, how in enumerate(options)]
    assert engine.steps < sum(how.max_tokens for how in options)  # they were drawn together
    engine.close()
    with pytest.raises(SequencesFull):
        engine.submit(language.prompt("to"), Sampling(), lambda piece: None)


def test_what_was_accepted_is_answered_after_sigterm(served: Server, ask: openai.OpenAI) -> None:
    """The last test of the shared server."""
    with ThreadPoolExecutor(1) as pool:
        stream = ask.completions.create(model="", prompt="to", max_tokens=300, stream=True)
        first = next(iter(stream)).choices[0].text
        served.process.send_signal(signal.SIGTERM)
        rest = pool.submit(lambda: [chunk.choices[0] for chunk in stream]).result(60)
    assert rest[-1].finish_reason == "length" and len(first + "".join(choice.text for choice in rest)) == 300
    assert served.process.wait(60) == 0 and "every accepted request was answered" in served.process.communicate()[0]


def test_options_of_classifiers_are_refused(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, says in (
        (("--engine", "openvino"), "a language model is served by PyTorch; leave --engine out"),
        (("--data", "digits"), "a language model is served by PyTorch; leave --data out"),
        (("--tighten",), "this is a language model; leave --tighten out"),
    ):
        assert main(["serve", str(net), "--port", "0", *options]) == 2
        assert says in capsys.readouterr().err

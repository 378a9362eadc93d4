"""The official client against real engines, through memoria."""

from __future__ import annotations

import base64
import struct
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionUserMessageParam

from tests.vllm.daemon import RealDaemon

EMBEDDER, WRITER = "tiny-embedding", "tiny-generation"


def test_both_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [EMBEDDER, WRITER]


def test_one_model_is_retrieved(client: openai.OpenAI) -> None:
    assert client.models.retrieve(WRITER).id == WRITER


def test_one_text_is_embedded(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDER, input="hello", encoding_format="float")
    assert len(answer.data) == 1
    assert len(answer.data[0].embedding) == 64
    assert answer.usage.prompt_tokens > 0


def test_a_batch_is_embedded_in_order_and_alike(client: openai.OpenAI) -> None:
    texts = ["one", "two", "one"]
    answer = client.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float")
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-4)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-4)


def test_base64_embeddings_hold_the_same_numbers(client: openai.OpenAI) -> None:
    plain = client.embeddings.create(model=EMBEDDER, input="same", encoding_format="float")
    packed = client.embeddings.create(model=EMBEDDER, input="same", encoding_format="base64")
    data = base64.b64decode(str(packed.data[0].embedding))
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(
        plain.data[0].embedding, abs=1e-4
    )


def test_embeddings_are_cut_to_the_dimensions_asked_for(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDER, input="x", dimensions=16, encoding_format="float")
    assert len(answer.data[0].embedding) == 16


def test_a_completion_has_the_tokens_asked_for(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=WRITER, prompt="hello", max_tokens=8, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.choices[0].finish_reason == "length"


def test_a_streamed_completion_says_what_the_plain_one_says(client: openai.OpenAI) -> None:
    asked = {"model": WRITER, "prompt": "stream", "max_tokens": 12, "temperature": 0, "seed": 1}
    plain = client.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(client.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    assert len(chunks) > 3
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI) -> None:
    texts = {
        client.completions.create(model=WRITER, prompt="seed", max_tokens=10, temperature=1.0, seed=7)
        .choices[0]
        .text
        for _ in range(2)
    }
    assert len(texts) == 1


def test_several_choices_come_in_one_answer(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=WRITER, prompt="n", n=3, max_tokens=4, temperature=1.0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_a_stop_text_ends_the_completion(client: openai.OpenAI) -> None:
    asked = {"model": WRITER, "prompt": "stop", "temperature": 0, "extra_body": {"ignore_eos": True}}
    text = client.completions.create(**asked, max_tokens=20).choices[0].text  # type: ignore[call-overload]
    stop = text[5:7]
    answer = client.completions.create(**asked, max_tokens=20, stop=[stop])  # type: ignore[call-overload]
    assert answer.choices[0].finish_reason == "stop"
    assert stop not in answer.choices[0].text


def test_logprobs_are_there_for_every_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=WRITER, prompt="p", max_tokens=3, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 3


def test_a_chat_is_answered_plain_and_streamed(client: openai.OpenAI) -> None:
    said: ChatCompletionUserMessageParam = {"role": "user", "content": "hello"}
    plain = client.chat.completions.create(model=WRITER, messages=[said], max_tokens=6, temperature=0)
    streamed = client.chat.completions.create(
        model=WRITER, messages=[said], max_tokens=6, temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == plain.choices[0].message.content


def chat(client: openai.OpenAI, **asked: Any) -> ChatCompletion:
    said: ChatCompletionUserMessageParam = {"role": "user", "content": "hello"}
    answer: ChatCompletion = client.chat.completions.create(
        model=WRITER, messages=[said], extra_body={"ignore_eos": True}, **asked
    )
    return answer


def test_a_chat_gives_several_choices(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, max_tokens=4, temperature=1.0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_a_stop_text_ends_a_chat(client: openai.OpenAI) -> None:
    whole = chat(client, max_tokens=20, temperature=0).choices[0].message.content or ""
    stop = whole[5:7]
    choice = chat(client, max_tokens=20, temperature=0, stop=[stop]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == whole[: whole.index(stop)]


def test_a_chat_has_logprobs_for_every_token(client: openai.OpenAI) -> None:
    logprobs = chat(client, max_tokens=3, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [2, 2, 2]
    assert all(token.logprob <= 0 for token in logprobs.content)


def test_a_seed_makes_a_chat_repeatable(client: openai.OpenAI) -> None:
    texts = [
        chat(client, max_tokens=10, temperature=1.0, seed=seed).choices[0].message.content
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_an_unknown_model_is_a_404_in_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt="x")
    assert "nobody" in caught.value.message


def test_a_bad_parameter_is_vllms_own_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=WRITER, prompt="x", max_tokens=-1)


def test_tokens_are_counted_and_put_together_again(client: openai.OpenAI) -> None:
    root = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    counted = root.post("/tokenize", body={"model": WRITER, "prompt": "hello"}, cast_to=dict[str, object])
    text = root.post(
        "/detokenize", body={"model": WRITER, "tokens": counted["tokens"]}, cast_to=dict[str, object]
    )
    assert text["prompt"] == "hello"


def test_texts_are_scored_against_each_other(client: openai.OpenAI) -> None:
    answer = client.post(
        "/score",
        body={"model": EMBEDDER, "text_1": "a", "text_2": ["a", "b"]},
        cast_to=dict[str, list[dict[str, float]]],
    )
    same, other = (item["score"] for item in answer["data"])
    assert same > other


def test_an_engines_own_port_serves_that_engine_alone(daemon: RealDaemon, client: openai.OpenAI) -> None:
    own = client.with_options(base_url=f"http://127.0.0.1:{daemon.generation_port}/v1")
    assert [model.id for model in own.models.list()] == [WRITER]
    with pytest.raises(openai.NotFoundError):
        own.embeddings.create(model=EMBEDDER, input="x")

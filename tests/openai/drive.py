"""OpenAI's own Python client, as pip gives it, against an appliance over mutual TLS.

Called by tests/it/openai.rs with the address of the API and a folder with the certificates. Each check prints its name when
it has passed; the first one that fails ends the program with a traceback.
"""

import json
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import openai
import pydantic

BASE_URL, CERTIFICATES = sys.argv[1], Path(sys.argv[2])
MODEL, EMBEDDER = "empathd", "all-MiniLM-L6-v2"
# The token that ends an answer of the tiny model; without it an answer has its full length.
NO_END = {"2": -100}


def connect(name=None, **options):
    """A client with the certificate of this name, or with none."""
    context = ssl.create_default_context(cafile=CERTIFICATES / "ca.pem")
    if name is not None:
        context.load_cert_chain(CERTIFICATES / f"{name}.pem", CERTIFICATES / f"{name}.key")
    transport = openai.DefaultHttpxClient(verify=context)
    return openai.OpenAI(base_url=BASE_URL, api_key="not used", http_client=transport, **{"max_retries": 0, **options})


CLIENT = connect("ehr")


def chat(words="What helps with sleep?", **options):
    """One question."""
    messages = options.pop("messages", [{"role": "user", "content": words}])
    options = {"model": MODEL, "temperature": 1, "seed": 7, "max_completion_tokens": 12, **options}
    return CLIENT.chat.completions.create(messages=messages, **options)


def refusal(kind, status, *named, call=chat, **options):
    """The error of a request that must be refused."""
    try:
        call(**options)
    except openai.APIStatusError as error:
        assert type(error) is kind and error.status_code == status, error
        for word in named:
            assert word in error.message, error
        return error
    raise AssertionError(f"{options} was not refused")


def notes(answer):
    """What the appliance adds to an answer."""
    return answer.model_extra["empathd"]


def models():
    names = [model.id for model in CLIENT.models.list()]
    assert MODEL in names and EMBEDDER in names and len(names) == 3, names
    assert all(CLIENT.models.retrieve(name).owned_by == "empathd" for name in names)
    refusal(openai.NotFoundError, 404, call=CLIENT.models.retrieve, model="gpt")
    refusal(openai.NotFoundError, 404, model="gpt")


def plain_chat():
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "morning."}]},
        {"role": "assistant", "content": "Good morning!"},
        {"role": "user", "content": "How do I sleep better?"},
    ]
    answer = chat(messages=messages)
    choice, usage = answer.choices[0], answer.usage
    assert answer.object == "chat.completion" and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and isinstance(choice.message.content, str)
    assert 0 < usage.completion_tokens <= 12 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert notes(answer)["cache"] == "miss"
    again = chat(messages=messages)
    assert again.choices[0].message.content == choice.message.content
    assert notes(again)["cache"] == "response"
    assert again.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens
    other = chat(messages=messages, user="another")
    assert notes(other)["cache"] == "miss", "never across clients"
    assert other.choices[0].message.content == choice.message.content, "the same question has the same answer"


def streamed_chat():
    whole = chat(seed=8, logit_bias=NO_END, max_completion_tokens=40)
    options = {"stream": True, "stream_options": {"include_usage": True}, "user": "another"}
    chunks = list(chat(seed=8, logit_bias=NO_END, max_completion_tokens=40, **options))
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert told[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in told) == whole.choices[0].message.content
    assert len(told) > 10, "it comes piece by piece"
    assert [choice.finish_reason for choice in told if choice.finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 40
    with chat(seed=8, stream=True, max_completion_tokens=400) as left:
        next(iter(left))


def choices_and_probabilities():
    answer = chat(n=3, logprobs=True, top_logprobs=4, logit_bias=NO_END)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == 36
    assert answer.choices[0].message.content == chat(logit_bias=NO_END).choices[0].message.content
    for choice in answer.choices:
        tokens = choice.logprobs.content
        text = bytes(byte for token in tokens for byte in token.bytes)
        assert len(tokens) == 12 and text.decode(errors="replace") == choice.message.content
        for token in tokens:
            likeliest = [top.logprob for top in token.top_logprobs]
            assert len(likeliest) == 4 and likeliest == sorted(likeliest, reverse=True)
            assert token.logprob <= likeliest[0] <= 0
    parts = list(chat(n=2, stream=True, logprobs=True, user="another"))
    assert {choice.index for part in parts for choice in part.choices} == {0, 1}
    assert sum(len(choice.logprobs.content) for part in parts for choice in part.choices if choice.logprobs) > 2


def sampling():
    def tokens(**options):
        bias = {**NO_END, "40": 80, "41": 80}
        answer = chat(temperature=0, logprobs=True, logit_bias=bias, max_completion_tokens=8, **options)
        return [token.token for token in answer.choices[0].logprobs.content]

    allowed = set(tokens(frequency_penalty=2))
    assert len(allowed) == 2 and set(tokens()) <= allowed, "nothing else is likely any more"
    assert all(3 <= tokens(frequency_penalty=2).count(token) <= 5 for token in allowed), "what was said is avoided"
    assert len(set(tokens(frequency_penalty=-2))) == 1, "what was said is said again"
    assert set(tokens(presence_penalty=2)) == allowed
    text = chat(logit_bias=NO_END, max_completion_tokens=60).choices[0].message.content
    places = [at for at in range(5, len(text) - 4) if text[at : at + 4].isascii() and text.find(text[at : at + 4]) == at]
    assert places, text
    for at in places[:3]:
        cut = chat(logit_bias=NO_END, max_completion_tokens=60, stop=["never said", text[at : at + 4]])
        assert cut.choices[0].message.content == text[:at] and cut.choices[0].finish_reason == "stop"
    assert chat(max_completion_tokens=None, max_tokens=3, logit_bias=NO_END).usage.completion_tokens == 3
    draws = {chat(seed=None, logit_bias=NO_END).choices[0].message.content for _ in range(3)}
    assert len(draws) > 1, "without a seed answers differ"
    assert chat(top_p=0.5, service_tier="flex", store=False, parallel_tool_calls=openai.omit).choices


def texts():
    create = CLIENT.completions.create
    answer = create(model=MODEL, prompt=["One", "Two"], n=2, seed=3, max_tokens=6, logit_bias=NO_END, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        told = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 6
        assert all(2 <= len(top) <= 3 for top in told.top_logprobs)
    alone = create(model=MODEL, prompt="Two", seed=3, max_tokens=6, logit_bias=NO_END)
    assert alone.choices[0].text == answer.choices[2].text, "the same alone and among others"
    parts = list(create(model=MODEL, prompt="Two", seed=3, max_tokens=6, logit_bias=NO_END, stream=True, user="another"))
    assert "".join(part.choices[0].text for part in parts) == alone.choices[0].text
    assert create(model=MODEL, prompt=[40, 41, 42], max_tokens=2).usage.prompt_tokens == 3
    refusal(openai.BadRequestError, 400, "`echo`", call=create, model=MODEL, prompt="One", echo=True)
    refusal(openai.BadRequestError, 400, "`suffix`", call=create, model=MODEL, prompt="One", suffix="!")


def embeddings():
    create = CLIENT.embeddings.create
    told = create(model=EMBEDDER, input=["I sleep.", "sleepless nights", "I sleep."])
    vectors = [one.embedding for one in told.data]
    assert vectors[0] == vectors[2] != vectors[1] and told.usage.total_tokens > 6
    assert all(abs(sum(number * number for number in vector) - 1) < 1e-5 for vector in vectors)
    numbers = create(model=EMBEDDER, input="I sleep.", encoding_format="float").data[0].embedding
    assert all(abs(a - b) < 1e-6 for a, b in zip(numbers, vectors[0], strict=True))
    refusal(openai.BadRequestError, 400, "`input`", call=create, model=EMBEDDER, input=[])
    refusal(openai.BadRequestError, 400, "`dimensions`", call=create, model=EMBEDDER, input="x", dimensions=3)
    refusal(openai.BadRequestError, 400, "tokens", call=create, model=EMBEDDER, input="sleep " * 100)
    refusal(openai.NotFoundError, 404, call=create, model=MODEL, input="x")


class Mood(pydantic.BaseModel):
    """What an answer is constrained to."""

    mood: Literal["low", "fine"]
    urgent: bool


def json_answers():
    parsed = CLIENT.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "How am I?"}],
        response_format=Mood,
        max_completion_tokens=300,
        seed=5,
    )
    assert isinstance(parsed.choices[0].message.parsed, Mood) and parsed.choices[0].finish_reason == "stop"
    for seed in range(3):
        answer = chat(response_format={"type": "json_object"}, max_completion_tokens=60, seed=seed).choices[0]
        assert answer.message.content.lstrip().startswith("{"), answer
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.message.content), dict)
    none = {"name": "none", "schema": {"type": "integer", "minimum": 3, "maximum": 2}}
    refusal(openai.BadRequestError, 400, response_format={"type": "json_schema", "json_schema": none})


def tools():
    look_up = openai.pydantic_function_tool(Mood, name="look_up", description="Looks a mood up.")
    close = {"type": "function", "function": {"name": "close", "description": "Ends the session."}}
    options = {"tools": [look_up, close], "max_completion_tokens": 400}
    question = {"role": "user", "content": "Look it up."}
    answer = chat(messages=[question], tool_choice="required", **options).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None, answer
    call = answer.message.tool_calls[0]
    assert call.function.name in ("look_up", "close") and isinstance(json.loads(call.function.arguments), dict)
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is fine."}
    after = chat(messages=[question, answer.message, result], **options).choices[0]
    assert after.finish_reason in ("stop", "length", "tool_calls")
    named = {"type": "function", "function": {"name": "look_up"}}
    parts = [part.choices[0] for part in chat(stream=True, tool_choice=named, **options)]
    deltas = [delta for part in parts for delta in part.delta.tool_calls or []]
    assert [delta.index for delta in deltas] == [0] and deltas[0].id.startswith("call_")
    assert isinstance(Mood.model_validate_json(deltas[0].function.arguments), Mood)
    assert parts[-1].finish_reason == "tool_calls"
    with CLIENT.chat.completions.stream(
        model=MODEL, messages=[question], tools=[look_up], tool_choice="required", seed=9, max_completion_tokens=400
    ) as events:
        final = events.get_final_completion().choices[0]
    assert isinstance(final.message.tool_calls[0].function.parsed_arguments, Mood)
    assert chat(messages=[question], tool_choice="none", **options).choices[0].message.tool_calls is None


def refusals():
    assert refusal(openai.BadRequestError, 400, "`n`", n=9).param == "n"
    refusal(openai.BadRequestError, 400, "`stop`", stop="x" * 10_000)
    refusal(openai.BadRequestError, 400, "`reasoning_effort`", reasoning_effort="low")
    refusal(openai.BadRequestError, 400, "`metadata`", metadata={"a": "b"})
    refusal(openai.BadRequestError, 400, "`top_k`", extra_body={"top_k": 5})
    refusal(openai.BadRequestError, 400, "logit_bias", logit_bias={"999999": 1})
    error = refusal(openai.BadRequestError, 400, "tokens", words="sleep " * 3000)
    assert error.code == "prompt_too_long" and error.type == "invalid_request_error", error.body
    for stranger in [connect(), connect("monitor")]:
        try:
            stranger.models.list()
        except openai.APIConnectionError:
            continue
        except openai.PermissionDeniedError as error:
            assert error.code == "forbidden"
            continue
        raise AssertionError("a stranger was answered")


def danger():
    answer = chat("I want to kill myself tonight.")
    assert "ring 0800 111" in answer.choices[0].message.content
    assert notes(answer)["crisis_signal"] and notes(answer)["cache"] == "none"


def too_many():
    # As many answers as there is room for, each of its full length.
    held = chat(n=8, stream=True, logit_bias=NO_END, max_completion_tokens=400)
    next(iter(held))
    error = refusal(openai.RateLimitError, 429)
    assert error.code == "busy" and int(error.response.headers["retry-after"]) >= 1
    danger()
    patient = connect("ehr", max_retries=8)
    waiting = threading.Thread(target=lambda: [time.sleep(0.2), held.close()])
    waiting.start()
    messages = [{"role": "user", "content": "And I?"}]
    assert patient.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=2).choices
    waiting.join()


CHECKS = [
    models,
    plain_chat,
    streamed_chat,
    choices_and_probabilities,
    sampling,
    texts,
    embeddings,
    json_answers,
    tools,
    refusals,
    danger,
    too_many,
]

if __name__ == "__main__":
    for check in CHECKS:
        began = time.monotonic()
        check()
        print(f"{check.__name__} {time.monotonic() - began:.2f}", flush=True)

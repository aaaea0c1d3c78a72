#!/usr/bin/env python3
"""Drives a running `loam serve` with the clients that people use: the openai, anthropic and ollama packages.

    pip install openai anthropic ollama
    loam serve MODEL --port 8080 &
    python scripts/check_serve.py http://127.0.0.1:8080

The model needs a chat template and a context of 1024 tokens or more: descriptions of tools take their place.
Every check prints a line; the exit status is 1 where one fails. Clients that are not installed are skipped, by name.
"""

import base64
import json
import struct
import sys
import traceback
import urllib.request

BASE = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
FAILED = []


def check(name):
    def run(work):
        try:
            found = work()
            print(f"ok    {name}" + (f": {found}" if found else ""))
        except Exception as error:  # noqa: BLE001 - every failure is reported alike
            FAILED.append(name)
            print(f"FAIL  {name}: {error!r}")
            traceback.print_exc()

    return run


def short(text):
    return json.dumps(text[:60], ensure_ascii=False)


def get(path):
    with urllib.request.urlopen(BASE + path) as answer:
        return answer.read().decode()


MODEL = json.loads(get("/v1/models"))["data"][0]["id"]
ASK = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "Where is the fox?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
]


def openai_checks():
    import openai
    import pydantic

    print(f"openai {openai.__version__}")
    client = openai.OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)
    chat = client.chat.completions

    @check("models")
    def _():
        assert client.models.retrieve(MODEL).id == MODEL
        return [model.id for model in client.models.list()]

    @check("chat, twice with one seed")
    def _():
        make = lambda: chat.create(model=MODEL, messages=ASK, max_completion_tokens=24, seed=5, temperature=0.8)
        a, b = make(), make()
        assert a.choices[0].message.content == b.choices[0].message.content
        assert a.usage.total_tokens == a.usage.prompt_tokens + a.usage.completion_tokens
        return short(a.choices[0].message.content)

    @check("chat, streamed, is the same text")
    def _():
        ask = dict(model=MODEL, messages=ASK, max_tokens=24, seed=5, n=2)
        whole = chat.create(**ask)
        texts, usage = ["", ""], None
        for chunk in chat.create(**ask, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice.message.content for choice in whole.choices], texts
        assert usage.completion_tokens == whole.usage.completion_tokens
        return f"{usage.completion_tokens} tokens"

    @check("stream helper with accumulated events")
    def _():
        with chat.stream(model=MODEL, messages=ASK, max_tokens=8, seed=1) as stream:
            kinds = {event.type for event in stream}
        final = stream.get_final_completion()
        return f"{sorted(kinds)} {short(final.choices[0].message.content)}"

    @check("log-probabilities")
    def _():
        made = chat.create(model=MODEL, messages=ASK, max_tokens=6, seed=1, logprobs=True, top_logprobs=4)
        content = made.choices[0].logprobs.content
        assert len(content) == made.usage.completion_tokens and all(len(token.top_logprobs) == 4 for token in content)
        spelled = b"".join(bytes(token.bytes) for token in content).decode(errors="replace")
        assert spelled.startswith(made.choices[0].message.content)
        return [(token.token, round(token.logprob, 3)) for token in content[:3]]

    @check("stop, logit_bias, penalties")
    def _():
        made = chat.create(model=MODEL, messages=ASK, max_tokens=64, seed=1, stop=["e"], frequency_penalty=0.5)
        assert "e" not in made.choices[0].message.content
        chat.create(model=MODEL, messages=ASK, max_tokens=4, logit_bias={"50": -100}, presence_penalty=1)

    @check("structured output by pydantic")
    def _():
        class Person(pydantic.BaseModel):
            name: str = pydantic.Field(max_length=12)
            age: int = pydantic.Field(ge=0, le=99)

        made = chat.parse(model=MODEL, messages=ASK, response_format=Person, max_tokens=400, seed=2)
        return made.choices[0].message.parsed

    @check("json_schema and json_object")
    def _():
        form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
        made = chat.create(model=MODEL, messages=ASK, response_format=form, max_tokens=400, seed=3)
        value = json.loads(made.choices[0].message.content)
        assert set(value) == {"name", "age"} and 0 <= value["age"] <= 99
        made = chat.create(model=MODEL, messages=ASK, response_format={"type": "json_object"}, max_tokens=400, seed=3)
        if made.choices[0].finish_reason == "stop":
            json.loads(made.choices[0].message.content)
        return value

    @check("tools")
    def _():
        ask = dict(model=MODEL, messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=400, seed=4)
        made = chat.create(**ask, parallel_tool_calls=False)
        call = made.choices[0].message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert made.choices[0].finish_reason == "tool_calls" and arguments["city"] in ("Paris", "Rome")
        name, text, ids = "", "", []
        for chunk in chat.create(**ask, parallel_tool_calls=False, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or []:
                ids += [delta.id] if delta.id else []
                name += delta.function.name or ""
                text += delta.function.arguments or ""
        assert (name, text, len(ids)) == (call.function.name, call.function.arguments, 1)
        turn = made.choices[0].message.model_dump(exclude_none=True)
        answer = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        chat.create(model=MODEL, messages=[*ASK, turn, answer], tools=TOOLS, max_tokens=4)
        return f"{call.function.name}({arguments})"

    @check("completions with echo and log-probabilities")
    def _():
        made = client.completions.create(model=MODEL, prompt="The fox", max_tokens=1, echo=True, logprobs=2, temperature=0)
        rated = made.choices[0].logprobs
        assert rated.token_logprobs[0] is None and made.choices[0].text.startswith("The fox")
        assert len(rated.tokens) == len(rated.token_logprobs) == len(rated.text_offset)
        streamed = client.completions.create(model=MODEL, prompt="The fox", max_tokens=5, seed=1, stream=True)
        whole = client.completions.create(model=MODEL, prompt="The fox", max_tokens=5, seed=1)
        assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text

    @check("embeddings, float and base64")
    def _():
        texts = ["The fox eats a pear.", "狐狸吃了一个梨。"]
        # The package asks for base64 by itself, and decodes it.
        made = client.embeddings.create(model=MODEL, input=texts)
        plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
        raw = client.embeddings.with_raw_response.create(model=MODEL, input=texts, encoding_format="base64")
        coded = json.loads(raw.text)["data"][0]["embedding"]
        data = base64.b64decode(coded)
        decoded = list(struct.unpack(f"<{len(data) // 4}f", data))
        difference = max(abs(a - b) for a, b in zip(decoded, plain.data[0].embedding))
        assert difference < 1e-7 and len(made.data) == 2 and len(made.data[0].embedding) == len(decoded)
        short = client.embeddings.create(model=MODEL, input="x", dimensions=4, encoding_format="float")
        assert abs(sum(x * x for x in short.data[0].embedding) - 1) < 1e-4
        return f"{len(decoded)} features"

    @check("errors")
    def _():
        def fails(kind, param, **more):
            try:
                chat.create(**{"model": MODEL, "messages": ASK, "max_tokens": 4, **more})
            except kind as error:
                assert error.param == param, error
            else:
                raise AssertionError(f"{more} was accepted")

        bad = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
        fails(openai.BadRequestError, "response_format.json_schema.schema", response_format=form)
        fails(openai.BadRequestError, "temperature", temperature=-1)
        fails(openai.BadRequestError, "messages", messages=[])
        fails(openai.BadRequestError, "messages", messages=[{"role": "user", "content": "fox " * 100_000}])
        try:
            client.models.retrieve("no-such-model")
        except openai.NotFoundError:
            pass

    @check("responses")
    def _():
        made = client.responses.create(model=MODEL, input="Where is the fox?", max_output_tokens=16)
        text, kinds = "", []
        stream = client.responses.create(model=MODEL, input=ASK, max_output_tokens=16, stream=True)
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type in ("response.completed", "response.incomplete"):
                assert event.response.output_text == text
        assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
        tools = [{"type": "function", **TOOLS[0]["function"]}]
        ask = dict(model=MODEL, input="The weather?", tools=tools, tool_choice="required", max_output_tokens=400)
        called = client.responses.create(**ask, parallel_tool_calls=False)
        call = called.output[-1]
        assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome")
        return f"{short(made.output_text)}, {call.name}({call.arguments})"


def anthropic_checks():
    import anthropic

    print(f"anthropic {anthropic.__version__}")
    client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
    ask = [{"role": "user", "content": "Where is the fox?"}]
    # The package's own argument went away.
    cold = {"temperature": 0}

    @check("messages, whole and streamed")
    def _():
        made = client.messages.create(model=MODEL, max_tokens=16, system="You are kind.", messages=ask, extra_body=cold)
        with client.messages.stream(
            model=MODEL, max_tokens=16, system="You are kind.", messages=ask, extra_body=cold
        ) as stream:
            text = "".join(stream.text_stream)
        final = stream.get_final_message()
        assert text == made.content[0].text and final.stop_reason == made.stop_reason
        counted = client.messages.count_tokens(model=MODEL, system="You are kind.", messages=ask)
        assert counted.input_tokens == made.usage.input_tokens + (made.usage.cache_read_input_tokens or 0)
        return short(text)

    @check("messages with tools")
    def _():
        function = TOOLS[0]["function"]
        tools = [{"name": function["name"], "description": "Weather.", "input_schema": function["parameters"]}]
        choice = {"type": "any", "disable_parallel_tool_use": True}
        made = client.messages.create(model=MODEL, max_tokens=400, messages=ask, tools=tools, tool_choice=choice)
        use = [block for block in made.content if block.type == "tool_use"][0]
        assert made.stop_reason == "tool_use" and use.input["city"] in ("Paris", "Rome")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
        turns = [*ask, {"role": "assistant", "content": [b.model_dump() for b in made.content]}]
        turns.append({"role": "user", "content": [result]})
        client.messages.create(model=MODEL, max_tokens=4, messages=turns, tools=tools)
        with client.messages.stream(
            model=MODEL, max_tokens=400, messages=ask, tools=tools, tool_choice=choice
        ) as stream:
            final = stream.get_final_message()
        assert final.content[-1].input["days"] in range(1, 10)
        return f"{use.name}({use.input})"

    @check("errors of messages")
    def _():
        try:
            client.messages.create(model=MODEL, max_tokens=4, messages=[])
        except anthropic.BadRequestError as error:
            return error.body["error"]["type"]
        raise AssertionError("no messages were accepted")


def ollama_checks():
    import ollama

    client = ollama.Client(host=BASE)
    few = {"num_predict": 16, "seed": 3}

    @check("ollama: list, show")
    def _():
        assert MODEL in [model.model for model in client.list().models]
        return client.show(MODEL).details.family

    @check("ollama: chat and generate, whole and streamed")
    def _():
        whole = client.chat(model=MODEL, messages=ASK, options=few)
        text = "".join(part.message.content for part in client.chat(model=MODEL, messages=ASK, options=few, stream=True))
        assert text == whole.message.content and whole.done
        made = client.generate(model=MODEL, prompt="The fox", options=few)
        parts = list(client.generate(model=MODEL, prompt="The fox", options=few, stream=True))
        assert "".join(part.response for part in parts) == made.response and parts[-1].eval_count == made.eval_count
        return short(text)

    @check("ollama: format, tools, embed")
    def _():
        made = client.chat(model=MODEL, messages=ASK, format=SCHEMA, options={"num_predict": 400})
        value = json.loads(made.message.content)
        assert set(value) == {"name", "age"}
        client.chat(model=MODEL, messages=ASK, tools=TOOLS, options=few)
        vectors = client.embed(model=MODEL, input=["a fox", "a pear"]).embeddings
        assert len(vectors) == 2
        return value


@check("health, readiness, metrics")
def _():
    assert json.loads(get("/health"))["status"] == "ok" and json.loads(get("/ready"))["status"] == "ready"
    return f"{len(get('/metrics').splitlines())} lines"


for checks in (openai_checks, anthropic_checks, ollama_checks):
    try:
        checks()
    except ImportError as error:
        print(f"skip  {checks.__name__}: {error}")
print("all well" if not FAILED else f"failed: {', '.join(FAILED)}")
sys.exit(bool(FAILED))

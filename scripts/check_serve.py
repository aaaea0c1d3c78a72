#!/usr/bin/env python3
"""Drives a running `loam serve` with the clients that people use: openai, anthropic, ollama, LangChain, lm-eval.

    pip install openai anthropic ollama langchain-openai lm-eval jsonschema
    loam serve MODEL --port 8080 &
    python scripts/check_serve.py http://127.0.0.1:8080

The model needs a chat template and a context of 1024 tokens or more: descriptions of tools take their place.
lm-eval reads its tokenizer and its texts from this machine: give the model's directory as a second argument.
Every check prints a line; the exit status is 1 where one fails. Clients that are not installed are skipped, by name.
"""

import base64
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import traceback
import urllib.error
import urllib.request
from typing import Annotated

BASE = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
MODEL_DIR = sys.argv[2] if len(sys.argv) > 2 else None
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
        # The package refuses a final completion that its limit cut short.
        with chat.stream(model=MODEL, messages=ASK, max_tokens=1000, stop=["e"], seed=1) as stream:
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


def langchain_checks():
    import langchain_core
    import pydantic
    from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    print(f"langchain-core {langchain_core.__version__}")
    make = lambda **more: ChatOpenAI(model=MODEL, base_url=BASE + "/v1", api_key="none", max_retries=0, seed=3, **more)
    talk = [SystemMessage("You are kind."), HumanMessage("Where is the fox?")]

    @check("LangChain: invoke, stream, batch")
    def _():
        llm = make(max_tokens=16)
        whole = llm.invoke(talk)
        assert "".join(part.content for part in llm.stream(talk)) == whole.content
        assert [made.content for made in llm.batch([talk, talk])] == [whole.content] * 2
        assert whole.usage_metadata["output_tokens"] > 0
        return short(whole.content)

    @check("LangChain: structured output")
    def _():
        class Person(pydantic.BaseModel):
            """A person."""

            name: str = pydantic.Field(max_length=12)
            age: int = pydantic.Field(ge=0, le=99)

        for method in ("json_schema", "function_calling"):
            made = make(max_tokens=400).with_structured_output(Person, method=method).invoke(talk)
            assert isinstance(made, Person), (method, made)
        return made

    @check("LangChain: tools and their results")
    def _():
        @tool
        def get_weather(days: Annotated[int, pydantic.Field(ge=1, le=9)], warm: bool) -> str:
            """The weather."""
            return "rain"

        # Without strict a model may add what properties it likes, and a random one does without end.
        choice = dict(tool_choice="any", strict=True, parallel_tool_calls=False)
        llm = make(max_tokens=400).bind_tools([get_weather], **choice)
        called = llm.invoke(talk)
        call = called.tool_calls[0]
        assert call["name"] == "get_weather" and set(call["args"]) == {"days", "warm"}, called
        answer = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
        make(max_tokens=8).bind_tools([get_weather]).invoke([*talk, called, answer])
        return call["args"]

    @check("LangChain: log-probabilities")
    def _():
        made = make(max_tokens=5).bind(logprobs=True, top_logprobs=2).invoke(talk)
        assert len(made.response_metadata["logprobs"]["content"]) == made.usage_metadata["output_tokens"]

    @check("LangChain: embeddings")
    def _():
        # By itself it counts tokens with OpenAI's tokenizer, which it would have to download.
        plain = OpenAIEmbeddings(model=MODEL, base_url=BASE + "/v1", api_key="none", check_embedding_ctx_length=False)
        vectors, query = plain.embed_documents(["a fox", "a pear"]), plain.embed_query("a fox")
        assert len(vectors) == 2 and max(abs(a - b) for a, b in zip(vectors[0], query)) < 1e-6
        return f"{len(query)} features"


TASK = """
task: loam_border
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{before}}}}"
doc_to_target: "{{{{after}}}}"
{more}
"""


def lm_eval_checks():
    import lm_eval
    import numpy

    print(f"lm-eval {lm_eval.__version__}")
    if not MODEL_DIR:
        print("skip  lm_eval_checks: no model directory was given")
        return
    docs = [
        {"before": "The fox eats", "after": " a pear.", "wrong": " zq zq zq."},
        {"before": "Tom has 3 pears and", "after": " finds two more.", "wrong": " the the the."},
        {"before": "Where is the fox?", "after": " In the garden.", "wrong": " 17 17 17 17."},
    ]

    def run(folder, kind, more, name, tokenized):
        path = os.path.join(folder, "docs.jsonl")
        with open(path, "w") as file:
            file.write("".join(json.dumps(doc) + "\n" for doc in docs))
        with open(os.path.join(folder, "task.yaml"), "w") as file:
            file.write(TASK.format(path=path, kind=kind, more=more))
        settings = f"model={name},base_url={BASE}/v1/completions,num_concurrent=4,max_retries=1,tokenized_requests={tokenized}"
        settings += f",tokenizer={MODEL_DIR},tokenizer_backend=huggingface,max_length=256"
        out = os.path.join(folder, "out")
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", settings]
        command += ["--tasks", "loam_border", "--include_path", folder, "--output_path", out, "--log_samples", "--batch_size", "2"]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": folder, "OPENAI_API_KEY": "none"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        found = [os.path.join(where, name) for where, _, names in os.walk(out) for name in names]
        results = json.load(open(next(name for name in found if os.path.basename(name).startswith("results"))))
        samples = [json.loads(line) for line in open(next(name for name in found if name.endswith(".jsonl")))]
        return results["results"]["loam_border"], samples

    def own(before, after):
        """The log-likelihood of the end of a text, from the server itself."""
        def ids(text):
            body = json.dumps({"content": text}).encode()
            with urllib.request.urlopen(urllib.request.Request(BASE + "/tokenize", body)) as answer:
                return json.loads(answer.read())["tokens"]

        tokens, start = ids(before + after), len(ids(before))
        body = {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 1}
        with urllib.request.urlopen(urllib.request.Request(BASE + "/v1/completions", json.dumps(body).encode())) as answer:
            return sum(json.loads(answer.read())["choices"][0]["logprobs"]["token_logprobs"][start:])

    @check("lm-eval: log-likelihoods of a choice")
    def _():
        more = 'doc_to_choice: "{{[after, wrong]}}"\ntarget_delimiter: ""\ndoc_to_target: 0\nmetric_list: [{metric: acc}]'
        with tempfile.TemporaryDirectory() as folder:
            result, samples = run(folder, "multiple_choice", more, MODEL, True)
        assert len(samples) == len(docs)
        differences = []
        for sample in samples:
            doc = sample["doc"]
            for (found, _), after in zip(sample["filtered_resps"], (doc["after"], doc["wrong"])):
                differences.append(abs(float(found) - own(doc["before"], after)))
        assert max(differences) < 1e-3, differences
        return f"acc {result['acc,none']:.2f}, log-likelihoods within {numpy.max(differences):.1e} of /v1/completions"

    @check("lm-eval: perplexity of whole texts")
    def _():
        with tempfile.TemporaryDirectory() as folder:
            more = "metric_list: [{metric: word_perplexity}]\ndoc_to_target: \"{{before}}{{after}}\"\ndoc_to_text: \"\""
            result, _ = run(folder, "loglikelihood_rolling", more, MODEL, True)
        assert math.isfinite(result["word_perplexity,none"])
        return f"word perplexity {result['word_perplexity,none']:.1f}"

    @check("lm-eval: texts that go on to a stop text")
    def _():
        with tempfile.TemporaryDirectory() as folder:
            more = 'generation_kwargs: {until: ["."], max_gen_toks: 12, temperature: 0}\nmetric_list: [{metric: exact_match}]'
            result, samples = run(folder, "generate_until", more, MODEL, False)
        assert all("." not in sample["filtered_resps"][0] for sample in samples)
        return short(samples[0]["filtered_resps"][0])


def raw_checks():
    """Answers as they come over the wire against the extract of OpenAI's own document."""
    import jsonschema

    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "..", "crates", "serve", "tests", "openai_schema.json")) as file:
        extract = json.load(file)

    def is_a(name, value):
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": f"#/$defs/{name}", "$defs": extract["$defs"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    def ask(path, body, status=200):
        text = json.dumps({"model": MODEL, **body}) if isinstance(body, dict) else body
        request = urllib.request.Request(BASE + path, text.encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                assert answer.status == status
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            assert error.code == status, (error.code, error.read())
            return error.read().decode()

    def events(text):
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    few = {"max_tokens": 12, "seed": 1}
    chats = [few, {**few, "n": 2, "logprobs": True, "top_logprobs": 2}, {"max_tokens": 400, "tools": TOOLS, "tool_choice": "required"}]

    @check("raw answers of chat, whole and streamed, are as OpenAI's document says")
    def _():
        count = 0
        for more in chats:
            is_a("CreateChatCompletionResponse", json.loads(ask("/v1/chat/completions", {"messages": ASK, **more})))
            streamed = {"stream": True, "stream_options": {"include_usage": True}}
            for chunk in events(ask("/v1/chat/completions", {"messages": ASK, **more, **streamed})):
                is_a("CreateChatCompletionStreamResponse", chunk)
                count += 1
        return f"{count} chunks"

    @check("raw answers of the other endpoints, too")
    def _():
        for more in ({}, {"echo": True, "logprobs": 2}, {"n": 2}):
            is_a("CreateCompletionResponse", json.loads(ask("/v1/completions", {"prompt": "The fox", **few, **more})))
        for form in ("float", "base64"):
            made = json.loads(ask("/v1/embeddings", {"input": ["a", "b"], "encoding_format": form}))
            if form == "float":
                is_a("CreateEmbeddingResponse", made)
        is_a("ListModelsResponse", json.loads(get("/v1/models")))
        is_a("Model", json.loads(get(f"/v1/models/{MODEL}")))
        is_a("Response", json.loads(ask("/v1/responses", {"input": "Where?", "max_output_tokens": 16})))
        parts = events(ask("/v1/responses", {"input": "Where?", "max_output_tokens": 16, "stream": True}))
        for part in parts:
            is_a("ResponseStreamEvent", part)
        return f"{len(parts)} events"

    @check("raw errors, too")
    def _():
        wrong = [("{", 400), ("[]", 400), ({"messages": []}, 400), ({"messages": ASK, "temperature": -1}, 400)]
        wrong += [({"messages": ASK, "n": "two"}, 400), ({"messages": ASK, "seed": []}, 400)]
        for body, status in wrong:
            is_a("ErrorResponse", json.loads(ask("/v1/chat/completions", body, status)))
        return f"{len(wrong)} kinds"


@check("health, readiness, metrics, OpenAPI document")
def _():
    assert json.loads(get("/health"))["status"] == "ok" and json.loads(get("/ready"))["status"] == "ready"
    document = json.loads(get("/openapi.json"))
    return f"{len(get('/metrics').splitlines())} lines of metrics, {len(document['paths'])} paths"


for checks in (raw_checks, openai_checks, anthropic_checks, ollama_checks, langchain_checks, lm_eval_checks):
    try:
        checks()
    except ImportError as error:
        print(f"skip  {checks.__name__}: {error}")
print("all well" if not FAILED else f"failed: {', '.join(FAILED)}")
sys.exit(bool(FAILED))

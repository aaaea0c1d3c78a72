#!/usr/bin/env python3
"""Makes crates/serve/tests/openai_schema.json: what OpenAI's public OpenAPI document demands of the answers that we give.

    python scripts/openai_schema.py openapi.json crates/serve/tests/openai_schema.json

openapi.json is that of https://github.com/openai/openai-openapi. Kept are types, names, required fields and enumerations
of the answers of chat, completions, embeddings, models, responses and errors, and of all that these refer to. Of places
where one of many things may stand, those things are kept that this server may put there (KEPT).
"""

import json
import sys

ROOTS = [
    "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", "CreateCompletionResponse",
    "CreateEmbeddingResponse", "ErrorResponse", "ListModelsResponse", "Model", "Response", "ResponseStreamEvent",
]  # fmt: skip
KEPT = {
    "OutputMessage", "FunctionToolCall", "FunctionTool", "OutputTextContent", "RefusalContent", "ToolChoiceOptions",
    "ToolChoiceFunction", "ToolChoiceAllowed", "TextResponseFormatConfiguration", "ResponseFormatText",
    "ResponseFormatJsonObject", "TextResponseFormatJsonSchema", "ChatCompletionMessageToolCall", "ResponseCreatedEvent",
    "ResponseInProgressEvent", "ResponseCompletedEvent", "ResponseIncompleteEvent", "ResponseFailedEvent",
    "ResponseOutputItemAddedEvent", "ResponseOutputItemDoneEvent", "ResponseContentPartAddedEvent",
    "ResponseContentPartDoneEvent", "ResponseTextDeltaEvent", "ResponseTextDoneEvent",
    "ResponseFunctionCallArgumentsDeltaEvent", "ResponseFunctionCallArgumentsDoneEvent",
    "OutputTextContent", "MessagePhase",
}  # fmt: skip
WORDS = {"description", "title", "example", "examples", "externalDocs", "default", "deprecated", "format", "discriminator"}
WORDS |= {"maxLength", "nullable"}
# Texts and files by the millions are not what our answers hold.
UNUSED = {"moderation", "metadata", "reasoning", "prompt", "conversation", "audio", "annotations", "input_audio"}


def bare(value, is_names=False):
    if isinstance(value, dict):
        if not is_names and value.get("nullable") is True:
            return {"anyOf": [bare({key: part for key, part in value.items() if key != "nullable"}), {"type": "null"}]}
        drop = (lambda key: key in UNUSED) if is_names else (lambda key: key in WORDS or key.startswith("x-"))
        return {key: bare(part, key == "properties" and not is_names) for key, part in value.items() if not drop(key)}
    if isinstance(value, list):
        return [bare(part) for part in value]
    return value


def name_of(part):
    return part.get("$ref", "").rsplit("/", 1)[-1] if isinstance(part, dict) else ""


def pruned(value, schemas):
    """Without the alternatives that never stand here; references point into this file."""
    if isinstance(value, list):
        return [pruned(part, schemas) for part in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, part in value.items():
        if key in ("anyOf", "oneOf") and len(part) > 2:
            part = [one for one in part if not name_of(one) or name_of(one) in KEPT or "enum" in schemas[name_of(one)]]
        if key == "required":
            part = [one for one in part if one not in UNUSED]
        made[key] = f"#/$defs/{name_of(value)}" if key == "$ref" else pruned(part, schemas)
    return made


def loosen(found):
    """Names of models are any, and OpenAI's own server sends more than its document says: null for what the first token
    follows, in a stream for what is not known yet, and text for vectors as base64."""
    found["ModelIdsResponses"] = {"type": "string"}
    found.pop("ModelIdsShared", None)
    null = {"type": "null"}
    completion = found["CreateCompletionResponse"]["properties"]
    choice = completion["choices"]["items"]["properties"]
    choice["finish_reason"] = {"anyOf": [choice["finish_reason"], null]}
    rated = choice["logprobs"]["anyOf"][0]["properties"]
    for column in ("token_logprobs", "top_logprobs"):
        rated[column]["items"] = {"anyOf": [rated[column]["items"], null]}
    completion["usage"] = {"anyOf": [completion["usage"], null]}
    vector = found["Embedding"]["properties"]
    vector["embedding"] = {"anyOf": [vector["embedding"], {"type": "string"}]}


def main():
    with open(sys.argv[1]) as file:
        document = json.load(file)
    schemas = {name: bare(schema) for name, schema in document["components"]["schemas"].items()}
    found, open_names = {}, list(ROOTS)
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        found[name] = pruned(schemas[name], schemas)
        todo = [found[name]]
        while todo:
            part = todo.pop()
            if isinstance(part, dict):
                if "$ref" in part:
                    open_names.append(name_of(part))
                todo += part.values()
            elif isinstance(part, list):
                todo += part
    loosen(found)
    note = f"Extract of OpenAI's OpenAPI document, version {document['info']['version']}; made by scripts/openai_schema.py"
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    with open(sys.argv[2], "w") as file:
        file.write(f'{{\n  "$comment": {json.dumps(note)},\n  "$defs": {{\n{lines}\n  }}\n}}\n')
    print(f"{len(found)} schemas")


main()

"""Golden values of the samplers; called by goldens.py.

Preset `hf` is transformers itself. Preset `openai` is vLLM's rules in PyTorch, preset `llamacpp` llama.cpp's in plain
Python, both written from what those engines document and do, with none of Loam's code in mind. The settings of a case are
those of loam_chat::Sampling; `seen` are all tokens before, of which the last `written` were generated.
"""
import math
import zlib

import torch
from transformers.generation import logits_process

INF = float("inf")


# --- transformers ---------------------------------------------------------------------------------------------------

def hf(logits, case):
    s = case["settings"]
    chain = [  # the order in which transformers applies them
        "logit_bias" in s and logits_process.SequenceBiasLogitsProcessor([[[int(t)], b] for t, b in s["logit_bias"].items()]),
        "repetition_penalty" in s and logits_process.RepetitionPenaltyLogitsProcessor(s["repetition_penalty"]),
        "temperature" in s and logits_process.TemperatureLogitsWarper(s["temperature"]),
        "top_k" in s and logits_process.TopKLogitsWarper(s["top_k"]),
        "top_p" in s and logits_process.TopPLogitsWarper(s["top_p"]),
        "min_p" in s and logits_process.MinPLogitsWarper(s["min_p"]),
        "typical_p" in s and logits_process.TypicalLogitsWarper(s["typical_p"]),
    ]
    seen, scores = torch.tensor([case["seen"]]), torch.tensor([logits])
    for processor in filter(None, chain):
        scores = processor(seen, scores)
    return scores.softmax(-1)[0].tolist()


# --- vLLM -----------------------------------------------------------------------------------------------------------

def openai(logits, case):
    s, logits = case["settings"], torch.tensor(logits, dtype=torch.float64)
    size = len(logits)
    for token, bias in s.get("logit_bias", {}).items():
        logits[int(token)] += bias
    prompt, output = case["seen"][:len(case["seen"]) - case["written"]], case["seen"][len(case["seen"]) - case["written"]:]
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=size)
    occurred = (torch.bincount(torch.tensor(prompt, dtype=torch.long), minlength=size) > 0) | (counts > 0)
    factor = torch.where(occurred, s.get("repetition_penalty", 1.0), 1.0)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    logits = logits - s.get("frequency_penalty", 0.0) * counts - s.get("presence_penalty", 0.0) * (counts > 0)
    temperature = s.get("temperature", 1.0)
    if temperature < 1e-5:
        return torch.nn.functional.one_hot(logits.argmax(), size).double().tolist()
    logits = logits / temperature
    if "min_p" in s:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < s["min_p"] * probabilities.max(), -INF)
    ascending, order = logits.sort(descending=False, stable=True)
    if "top_k" in s:
        ascending = ascending.masked_fill(ascending < ascending[size - s["top_k"]], -INF)
    if "top_p" in s:
        mask = ascending.softmax(-1).cumsum(-1) <= 1 - s["top_p"]
        mask[-1] = False
        ascending = ascending.masked_fill(mask, -INF)
    return torch.empty_like(logits).scatter(0, order, ascending).softmax(-1).tolist()


# --- llama.cpp ------------------------------------------------------------------------------------------------------

def softmax(left):
    top = max(left.values())
    weights = {t: math.exp(x - top) for t, x in left.items()}
    total = sum(weights.values())
    return {t: w / total for t, w in weights.items()}


def descending(values):
    return sorted(values, key=lambda t: (-values[t], t))


def entropy(p):
    return -sum(x * math.log(x) for x in p.values() if x > 0)


def last(tokens, n):
    return tokens if n == -1 else tokens[len(tokens) - min(n, len(tokens)):]


def penalties(left, case, s):
    tokens = last(case["seen"], s.get("penalty_last_n", 64))
    for token in set(tokens):
        x, repeat = left[token], s.get("repetition_penalty", 1.0)
        x = x * repeat if x <= 0 else x / repeat
        left[token] = x - tokens.count(token) * s.get("frequency_penalty", 0.0) - s.get("presence_penalty", 0.0)
    return left


def dry(left, case, s):
    """By comparing every pair of places, instead of with the Z-algorithm."""
    tokens, breakers = last(case["seen"], s.get("dry_penalty_last_n", -1)), case["breakers"]
    multiplier, base, allowed = s.get("dry_multiplier", 0.0), s.get("dry_base", 1.75), s.get("dry_allowed_length", 2)
    if multiplier == 0 or base < 1 or len(tokens) <= allowed:
        return left
    limit = len(tokens)
    for at in reversed(range(len(tokens))):
        found = [b for b in breakers if tokens[at:at + len(b)] == b]
        if found:
            limit = len(tokens) - at - max(len(b) for b in found)
            break
    if limit < allowed:
        return left
    longest = {}
    for end in range(1, len(tokens)):
        n = 0
        while n < end and tokens[end - 1 - n] == tokens[-1 - n]:
            n += 1
        if min(n, limit) >= allowed:
            longest[tokens[end]] = max(longest.get(tokens[end], 0), min(n, limit))
    most = int(88.7228391 / math.log(base)) if base > 1.000001 else None
    for token, n in longest.items():
        if [token] not in breakers:
            power = n - allowed if most is None else min(n - allowed, most)
            left[token] -= multiplier * base ** power
    return left


def top_n_sigma(left, case, s):
    n = s.get("top_n_sigma", -1)
    if n <= 0:
        return left
    mean = sum(left.values()) / len(left)
    std = math.sqrt(sum((x - mean) ** 2 for x in left.values()) / len(left))
    return {t: x for t, x in left.items() if x >= max(left.values()) - n * std}


def top_k(left, case, s):
    k = s.get("top_k", 0)
    return {t: left[t] for t in descending(left)[:k]} if k > 0 else left


def typical_p(left, case, s):
    if s.get("typical_p", 1.0) >= 1:
        return left
    p = softmax(left)
    expected, kept, total = entropy(p), {}, 0.0
    for token in sorted(descending(p), key=lambda t: abs(-math.log(p[t]) - expected)):
        kept[token] = left[token]
        total += p[token]
        if total > s["typical_p"]:
            break
    return kept


def top_p(left, case, s):
    if s.get("top_p", 1.0) >= 1:
        return left
    p, kept, total = softmax(left), {}, 0.0
    for token in descending(left):
        kept[token] = left[token]
        total += p[token]
        if total >= s["top_p"]:
            break
    return kept


def min_p(left, case, s):
    share = s.get("min_p", 0.0)
    return {t: x for t, x in left.items() if x >= max(left.values()) + math.log(share)} if share > 0 else left


def xtc(left, case, s):
    """Where its chance is 1: the draw of the chance is not compared."""
    if s.get("xtc_probability", 0.0) == 0 or s.get("xtc_threshold", 0.1) > 0.5:
        return left
    assert s["xtc_probability"] == 1.0
    p, order = softmax(left), descending(left)
    above = [t for t in order if p[t] >= s.get("xtc_threshold", 0.1)]
    return {t: left[t] for t in order[max(len(above) - 1, 0):]}


def temperature(left, case, s):
    t, span = s.get("temperature", 1.0), s.get("dynatemp_range", 0.0)
    if span > 0 and len(left) > 1:
        low, high = max(0.0, t - span), t + span
        t = low + (high - low) * (entropy(softmax(left)) / math.log(len(left))) ** s.get("dynatemp_exponent", 1.0)
    if t <= 0:
        best = descending(left)[0]
        return {best: left[best]}
    return {token: x / t for token, x in left.items()}


def logit_bias(left, case, s):
    return {t: x + s.get("logit_bias", {}).get(str(t), 0.0) for t, x in left.items()}


STEPS = dict(logit_bias=logit_bias, penalties=penalties, dry=dry, top_n_sigma=top_n_sigma, top_k=top_k,
             typical_p=typical_p, top_p=top_p, min_p=min_p, xtc=xtc, temperature=temperature)


def llamacpp(logits, case):
    left = dict(enumerate(logits))
    for step in case["settings"].get("samplers", STEPS):
        left = STEPS[step](left, case, case["settings"])
    p = softmax(left)
    return [p.get(token, 0.0) for token in range(len(logits))]


def mirostat(vectors, settings):
    """Steps over changing logits; what is drawn is the n-th most likely of the tokens that are left, n the step."""
    tau, eta, names = settings["mirostat_tau"], settings["mirostat_eta"], list(vectors)
    mu, steps = 2 * tau, []
    for step in range(12):
        name = names[step % len(names)]
        left = {t: x / settings.get("temperature", 1.0) for t, x in enumerate(vectors[name])}
        p, order = softmax(left), descending(left)
        if settings["mirostat"] == 1:
            pairs = [(math.log((i + 2) / (i + 1)), math.log(p[order[i]] / p[order[i + 1]]))
                     for i in range(min(99, len(order) - 1))]
            slope = sum(t * b for t, b in pairs) / sum(t * t for t, _ in pairs)
            excess = slope - 1
            count = ((excess * 2 ** mu) / (1 - len(left) ** -excess)) ** (1 / slope)
            count = min(max(int(count), 1), len(order))
        else:
            count = max(sum(-math.log2(p[t]) <= mu for t in order), 1)
        p = softmax({t: left[t] for t in order[:count]})
        token = order[step % count]
        steps.append(dict(logits=name, mu=mu, token=token, probabilities=[p.get(t, 0.0) for t in range(len(left))]))
        mu -= eta * (-math.log2(p[token]) - tau)
    return dict(settings=settings, steps=steps, mu=mu)


# --- cases ----------------------------------------------------------------------------------------------------------

PROMPT = [3, 7, 7, 0, 19]
HF = [  # name, logits, settings
    ("plain", "smooth", {}),
    ("temperature cold", "smooth", dict(temperature=0.5)),
    ("temperature hot", "peaked", dict(temperature=1.7)),
    ("top-k 1", "smooth", dict(top_k=1)),
    ("top-k 5", "smooth", dict(top_k=5)),
    ("top-k keeps what equals the k-th", "ties", dict(top_k=3)),
    ("top-k larger than the vocabulary", "smooth", dict(top_k=1000)),
    ("top-p 0.9", "smooth", dict(top_p=0.9)),
    ("top-p 0.3 of a peaked vector", "peaked", dict(top_p=0.3)),
    ("top-p tiny keeps one", "smooth", dict(top_p=0.001)),
    ("min-p 0.1", "smooth", dict(min_p=0.1)),
    ("min-p 1 keeps the largest", "peaked", dict(min_p=1.0)),
    ("typical 0.5", "smooth", dict(typical_p=0.5)),
    ("typical 0.9 of a peaked vector", "peaked", dict(typical_p=0.9)),
    ("typical keeps what is equally typical", "ties", dict(typical_p=0.3)),
    ("logit bias", "smooth", dict(logit_bias={"3": 2.5, "15": -4.0})),
    ("repetition penalty", "smooth", dict(repetition_penalty=1.3)),
    ("repetition reward", "smooth", dict(repetition_penalty=0.8)),
    ("temperature before top-p", "smooth", dict(temperature=0.7, top_p=0.8)),
    ("top-k before top-p", "smooth", dict(top_k=8, top_p=0.7)),
    ("everything", "smooth", dict(temperature=0.8, top_k=12, top_p=0.95, min_p=0.05, typical_p=0.9,
                                  repetition_penalty=1.2, logit_bias={"2": 3.0})),
]
OPENAI = [
    ("greedy below 1e-5", "smooth", dict(temperature=9e-6, min_p=0.3)),
    ("frequency of the output", "smooth", dict(frequency_penalty=0.7)),
    ("presence in the output", "smooth", dict(presence_penalty=1.1)),
    ("repetition in prompt and output", "smooth", dict(repetition_penalty=1.5)),
    ("a repetition penalty comes before the others", "smooth",
     dict(repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=-0.4)),
    ("top-k keeps what equals the k-th", "ties", dict(top_k=3)),
    ("min-p before top-k", "smooth", dict(min_p=0.3, top_k=6, temperature=1.4)),
    ("min-p before top-p", "smooth", dict(min_p=0.2, top_p=0.8, temperature=0.9)),
    ("everything", "smooth", dict(temperature=0.8, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.2,
                                  frequency_penalty=0.2, presence_penalty=0.1, logit_bias={"2": 3.0})),
]
LONG = [1, 2, 3, 4, 5] * 14 + [6, 2, 2, 7, 9]
REPEATS = [5, 1, 2, 3, 4, 8, 1, 2, 3, 9, 7, 1, 2, 3]
LLAMACPP = [  # name, logits, settings, seen, breakers
    ("penalties over 64 tokens", "smooth", dict(repetition_penalty=1.3), [10] + LONG, []),
    ("frequency and presence count the prompt", "smooth", dict(frequency_penalty=0.1, presence_penalty=0.6), LONG, []),
    ("a window of 4", "smooth", dict(penalty_last_n=4, repetition_penalty=1.2, frequency_penalty=0.5), LONG, []),
    ("a window of all", "smooth", dict(penalty_last_n=-1, frequency_penalty=0.05), [10] + LONG, []),
    ("a window of none", "smooth", dict(penalty_last_n=0, frequency_penalty=0.5), LONG, []),
    ("top-k keeps k of equals", "ties", dict(top_k=3), PROMPT, []),
    ("typical 0.5", "smooth", dict(typical_p=0.5), PROMPT, []),
    ("typical keeps as few as it can", "ties", dict(typical_p=0.3), PROMPT, []),
    ("top-n-sigma 1", "smooth", dict(top_n_sigma=1.0), PROMPT, []),
    ("top-n-sigma 0.3 of a peaked vector", "peaked", dict(top_n_sigma=0.3), PROMPT, []),
    ("xtc leaves the least likely of the likely", "smooth", dict(xtc_probability=1.0, xtc_threshold=0.08), PROMPT, []),
    ("xtc needs two above its threshold", "smooth", dict(xtc_probability=1.0, xtc_threshold=0.17), PROMPT, []),
    ("xtc with nothing above its threshold", "smooth", dict(xtc_probability=1.0, xtc_threshold=0.4), PROMPT, []),
    ("xtc above one half is off", "peaked", dict(xtc_probability=1.0, xtc_threshold=0.51), PROMPT, []),
    ("greedy after xtc", "smooth", dict(xtc_probability=1.0, xtc_threshold=0.08, temperature=0.0), PROMPT, []),
    ("dynamic temperature", "smooth", dict(temperature=1.0, dynatemp_range=0.5), PROMPT, []),
    ("dynamic temperature from 0 with a power", "peaked",
     dict(temperature=0.6, dynatemp_range=0.9, dynatemp_exponent=2.0), PROMPT, []),
    ("dynamic temperature of what is left", "smooth", dict(temperature=1.0, dynatemp_range=0.7, top_k=5), PROMPT, []),
    ("dry", "smooth", dict(dry_multiplier=0.8), REPEATS, []),
    ("dry takes the longest repetition", "smooth", dict(dry_multiplier=0.5, dry_allowed_length=1), REPEATS * 2, []),
    ("dry allows short passages", "smooth", dict(dry_multiplier=0.8, dry_allowed_length=4), REPEATS, []),
    ("dry over a window", "smooth", dict(dry_multiplier=0.8, dry_penalty_last_n=7), REPEATS, []),
    ("dry up to a breaker", "smooth", dict(dry_multiplier=0.8, dry_allowed_length=1), REPEATS, [[1]]),
    ("dry up to a breaker of two tokens", "smooth", dict(dry_multiplier=0.8, dry_allowed_length=1), REPEATS, [[1, 2], [7]]),
    ("dry never touches a breaker", "smooth", dict(dry_multiplier=0.8), REPEATS, [[4], [9, 9]]),
    ("dry does not overflow", "smooth", dict(dry_multiplier=1e-30, dry_base=4.0), [1] * 90, []),
    ("temperature after the cuts", "smooth", dict(temperature=0.5, top_p=0.8, min_p=0.2), PROMPT, []),
    ("an order of one's own", "smooth",
     dict(samplers=["temperature", "min_p", "top_k"], temperature=0.5, min_p=0.2, top_k=4), PROMPT, []),
    ("everything", "smooth",
     dict(temperature=0.8, top_k=12, top_p=0.95, min_p=0.05, typical_p=0.9, top_n_sigma=1.5, repetition_penalty=1.1,
          frequency_penalty=0.1, presence_penalty=0.1, dry_multiplier=0.4, xtc_probability=1.0, xtc_threshold=0.2,
          logit_bias={"2": 3.0}), REPEATS, [[8]]),
]
MIROSTAT = [
    dict(mirostat=1, mirostat_tau=2.0, mirostat_eta=0.3),
    dict(mirostat=1, mirostat_tau=5.0, mirostat_eta=0.1, temperature=0.8),
    dict(mirostat=2, mirostat_tau=2.0, mirostat_eta=0.3),
    dict(mirostat=2, mirostat_tau=1.0, mirostat_eta=0.5, temperature=1.5),
]


def write(root, write_json):
    generator = torch.Generator().manual_seed(zlib.crc32(b"samplers"))
    vectors = {name: torch.randn(24, generator=generator).mul(scale).tolist() for name, scale in (("smooth", 1.5), ("peaked", 5.0))}
    vectors["ties"] = [0.0, 2.0, 1.0, 2.0, -1.0, 1.0, 1.0, 0.0, -3.0, 1.0] + [-2.0] * 10
    engines = {"hf": hf, "openai": openai, "llamacpp": llamacpp}
    rows = [("hf", name, logits, settings, PROMPT, []) for name, logits, settings in HF]
    rows += [("openai", name, logits, settings, PROMPT + [2, 15, 2], []) for name, logits, settings in OPENAI]
    rows += [("llamacpp", *row) for row in LLAMACPP]
    cases = []
    for preset, name, logits, settings, seen, breakers in rows:
        written = len(seen) - len(PROMPT) if preset == "openai" else 0
        case = dict(name=f"{preset}: {name}", logits=logits, settings=dict(preset=preset) | settings, seen=seen,
                    written=written, breakers=breakers)
        probabilities = [0.0 if p == 0 else float(f"{p:.9g}") for p in engines[preset](vectors[logits], case)]
        cases.append(case | dict(probabilities=probabilities))
    smooth = {name: vectors[name] for name in ("smooth", "peaked")}
    runs = [mirostat(smooth, settings) for settings in MIROSTAT]
    write_json(root / "samplers.json", dict(logits=vectors, mirostat=runs, cases=cases))

//! PEFT's `adapter_config.json`.

use loam_models::{LanguageModel, Task};
use serde_json::{Map, Value, json};

use crate::config::{
    AdaLora, Config, Ia3, Lora, LoraInit, Method, PTuning, Prefix, PromptEncoder, PromptInit, PromptTuning, Targets,
    Vera,
};
use crate::linear::feedforward;
use crate::target::{Column, spelled_out};

/// A view of the object whose getters say what is wrong.
struct Fields<'a>(&'a Value);

type Read<T> = Result<T, String>;

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(&self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Read<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("`{key}` must be {what}, found {value}"))
    }

    fn size(&self, key: &str, default: usize) -> Read<usize> {
        Ok(self.read(key, "a whole number", Value::as_u64)?.map_or(default, |x| x as usize))
    }

    fn number(&self, key: &str, default: f64) -> Read<f64> {
        Ok(self.read(key, "a number", Value::as_f64)?.unwrap_or(default))
    }

    fn flag(&self, key: &str) -> Read<bool> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn names(&self, key: &str) -> Read<Option<Vec<String>>> {
        self.read(key, "a list of names", |value| {
            value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
        })
    }

    fn targets(&self) -> Read<Targets> {
        match self.get("target_modules") {
            None => Ok(Targets::Default),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Ok(Targets::AllLinear),
            Some(Value::String(text)) => Ok(Targets::Pattern(text.clone())),
            Some(_) => Ok(Targets::Names(self.names("target_modules")?.unwrap_or_default())),
        }
    }

    fn patterns<T>(&self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Read<Vec<(String, T)>> {
        let all = self.read(key, "an object of numbers", |value| {
            value.as_object()?.iter().map(|(name, value)| Some((name.clone(), read(value)?))).collect()
        });
        Ok(all?.unwrap_or_default())
    }

    /// Refuses what would change the result if it were passed over.
    fn refuse(&self, keys: &[&str]) -> Read<()> {
        let is_set = |value: &Value| match value {
            Value::Bool(is) => *is,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        match keys.iter().find(|key| self.get(key).is_some_and(is_set)) {
            Some(key) => Err(format!("`{key}` is {}, which is not supported", self.0[*key])),
            None => Ok(()),
        }
    }
}

/// Reads a configuration.
pub(super) fn read(value: &Value) -> Read<Config> {
    let fields = Fields(value);
    if fields.get("bias").is_some_and(|bias| bias != "none") {
        return Err(format!("`bias` is {}, which is not supported: only \"none\" is", value["bias"]));
    }
    fields.refuse(&[
        "target_parameters",
        "exclude_modules",
        "layers_to_transform",
        "layer_replication",
        "lora_bias",
        "megatron_config",
        "eva_config",
        "corda_config",
        "use_qalora",
        "alora_invocation_tokens",
    ])?;
    let name = value["peft_type"].as_str().unwrap_or_default();
    let method = match name {
        "LORA" => Method::Lora(lora(&fields)?),
        "ADALORA" => Method::AdaLora(adalora(&fields)?),
        "VERA" => {
            if fields.get("save_projection") == Some(&Value::Bool(false)) {
                return Err("`save_projection` is false: the fixed matrices are not in the file".into());
            }
            let plain = Vera::default();
            Method::Vera(Vera {
                targets: fields.targets()?,
                r: fields.size("r", plain.r)?,
                dropout: fields.number("vera_dropout", 0.0)?,
                d_initial: fields.number("d_initial", plain.d_initial)?,
                projection_prng_key: fields.size("projection_prng_key", 0)? as u64,
            })
        }
        "IA3" => {
            let feedforward = match fields.get("feedforward_modules") {
                Some(Value::String(_)) => return Err("`feedforward_modules` must be a list of names".into()),
                _ => fields.names("feedforward_modules")?,
            };
            Method::Ia3(Ia3 { targets: fields.targets()?, feedforward })
        }
        "PREFIX_TUNING" | "PROMPT_TUNING" | "P_TUNING" => soft_prompt(name, &fields)?,
        other => return Err(format!("`peft_type` is `{other}`, which is not supported")),
    };
    let tokens = match fields.get("trainable_token_indices") {
        None => Vec::new(),
        // Per module: only the tokens' vectors are known.
        Some(Value::Object(map)) if map.len() == 1 => indices(map.values().next())?,
        Some(Value::Array(_)) => indices(fields.get("trainable_token_indices"))?,
        Some(other) => return Err(format!("`trainable_token_indices` is {other}: only one module's are supported")),
    };
    let base = fields.read("base_model_name_or_path", "a text", |value| value.as_str().map(str::to_owned))?;
    Ok(Config {
        method,
        modules_to_save: fields.names("modules_to_save")?.unwrap_or_default(),
        trainable_tokens: tokens,
        base: base.filter(|base| !base.is_empty()),
    })
}

fn indices(value: Option<&Value>) -> Read<Vec<u32>> {
    let numbers = value.and_then(|value| value.as_array()?.iter().map(|id| id.as_u64().map(|id| id as u32)).collect());
    numbers.ok_or_else(|| "`trainable_token_indices` must list whole numbers".into())
}

fn lora(fields: &Fields<'_>) -> Read<Lora> {
    let init = match fields.get("init_lora_weights") {
        None | Some(Value::Bool(true)) => LoraInit::Default,
        Some(Value::Bool(false)) => LoraInit::Random,
        Some(Value::String(name)) => match name.to_lowercase().as_str() {
            "gaussian" => LoraInit::Gaussian,
            "olora" => LoraInit::Olora,
            name if name.starts_with("pissa") => LoraInit::Pissa,
            // These start like others and differ in what was done to the weights before.
            "eva" | "orthogonal" => LoraInit::Default,
            name => return Err(format!("`init_lora_weights` is `{name}`, which is not supported")),
        },
        Some(other) => return Err(format!("`init_lora_weights` is {other}, which is not supported")),
    };
    let plain = Lora::default();
    Ok(Lora {
        targets: fields.targets()?,
        r: fields.size("r", plain.r)?,
        alpha: fields.number("lora_alpha", plain.alpha)?,
        dropout: fields.number("lora_dropout", 0.0)?,
        use_rslora: fields.flag("use_rslora")?,
        use_dora: fields.flag("use_dora")?,
        init,
        rank_pattern: fields.patterns("rank_pattern", |value| value.as_u64().map(|r| r as usize))?,
        alpha_pattern: fields.patterns("alpha_pattern", Value::as_f64)?,
    })
}

fn adalora(fields: &Fields<'_>) -> Read<AdaLora> {
    let plain = AdaLora::default();
    let steps = |key: &str, default: u64| Ok::<_, String>(fields.size(key, default as usize)? as u64);
    Ok(AdaLora {
        targets: fields.targets()?,
        init_r: fields.size("init_r", plain.init_r)?,
        target_r: fields.size("target_r", plain.target_r)?,
        alpha: fields.number("lora_alpha", plain.alpha)?,
        dropout: fields.number("lora_dropout", 0.0)?,
        tinit: steps("tinit", 0)?,
        tfinal: steps("tfinal", 0)?,
        delta_t: steps("deltaT", 1)?,
        beta1: fields.number("beta1", plain.beta1)?,
        beta2: fields.number("beta2", plain.beta2)?,
        orth_reg_weight: fields.number("orth_reg_weight", plain.orth_reg_weight)?,
        total_step: steps("total_step", 1)?,
        rank_pattern: fields
            .patterns("rank_pattern", |value| value.as_array()?.iter().map(Value::as_bool).collect())?,
    })
}

fn soft_prompt(name: &str, fields: &Fields<'_>) -> Read<Method> {
    if fields.size("num_transformer_submodules", 1)? != 1 {
        return Err("`num_transformer_submodules` is not 1: soft prompts are for models of one stack".into());
    }
    let num_virtual_tokens = fields.size("num_virtual_tokens", 0)?;
    if num_virtual_tokens == 0 {
        return Err("`num_virtual_tokens` is missing".into());
    }
    Ok(match name {
        "PREFIX_TUNING" => {
            let width = fields.size("encoder_hidden_size", 0)?;
            Method::Prefix(Prefix {
                num_virtual_tokens,
                projection: fields.flag("prefix_projection")?.then_some(width),
            })
        }
        "PROMPT_TUNING" => {
            let init = match fields.get("prompt_tuning_init").and_then(Value::as_str) {
                Some("TEXT") => {
                    PromptInit::Text(fields.0["prompt_tuning_init_text"].as_str().unwrap_or_default().into())
                }
                Some("SAMPLE_VOCAB") => PromptInit::SampleVocab,
                _ => PromptInit::Random,
            };
            Method::Prompt(PromptTuning { num_virtual_tokens, init })
        }
        _ => {
            let encoder = match fields.get("encoder_reparameterization_type").and_then(Value::as_str) {
                Some("LSTM") => PromptEncoder::Lstm,
                _ => PromptEncoder::Mlp,
            };
            Method::PTuning(PTuning {
                num_virtual_tokens,
                encoder,
                hidden_size: fields.size("encoder_hidden_size", 0)?,
                num_layers: fields.size("encoder_num_layers", 2)?,
            })
        }
    })
}

/// A number as PEFT would write it: whole ones without a point.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

fn targets(model: &LanguageModel, targets: &Targets, column: Column) -> Value {
    match spelled_out(model, targets, column) {
        Targets::Names(names) => json!(names),
        Targets::Pattern(text) => json!(text),
        Targets::AllLinear | Targets::Default => json!("all-linear"),
    }
}

fn task_type(model: &LanguageModel) -> Value {
    let spec = model.spec();
    match spec.head.task {
        Task::LanguageModel if spec.encoder.is_some() => json!("SEQ_2_SEQ_LM"),
        Task::LanguageModel if spec.is_causal() => json!("CAUSAL_LM"),
        Task::LanguageModel => Value::Null,
        Task::Embedding => json!("FEATURE_EXTRACTION"),
        Task::SequenceClassification => json!("SEQ_CLS"),
        Task::TokenClassification => json!("TOKEN_CLS"),
        Task::QuestionAnswering => json!("QUESTION_ANS"),
    }
}

/// The configuration as PEFT writes it.
pub(super) fn write(config: &Config, model: &LanguageModel) -> Value {
    let list = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
    let mut out = json!({
        "task_type": task_type(model),
        "base_model_name_or_path": config.base,
        "revision": null,
        "inference_mode": true,
    });
    let method = match &config.method {
        Method::Lora(lora) => write_lora(lora, config, model),
        Method::AdaLora(adalora) => write_adalora(adalora, model),
        Method::Vera(vera) => json!({
            "peft_type": "VERA", "r": vera.r, "vera_dropout": vera.dropout, "d_initial": vera.d_initial,
            "projection_prng_key": vera.projection_prng_key, "save_projection": true, "bias": "none",
            "target_modules": targets(model, &vera.targets, Column::Lora), "fan_in_fan_out": is_transposed(model),
            "init_weights": true,
        }),
        Method::Ia3(ia3) => json!({
            "peft_type": "IA3", "target_modules": targets(model, &ia3.targets, Column::Ia3),
            "feedforward_modules": feedforward(model, ia3), "fan_in_fan_out": is_transposed(model),
            "init_ia3_weights": true,
        }),
        Method::Prefix(prefix) => {
            let attention = model.spec().stack.layers[0].attention;
            let width = attention.num_key_value_heads * attention.head_dim;
            let mut all = soft(model, prefix.num_virtual_tokens);
            all["peft_type"] = json!("PREFIX_TUNING");
            all["token_dim"] = json!(width);
            all["num_attention_heads"] = json!(attention.num_key_value_heads);
            all["encoder_hidden_size"] = json!(prefix.projection.filter(|&inner| inner > 0).unwrap_or(width));
            all["prefix_projection"] = json!(prefix.projection.is_some());
            all
        }
        Method::Prompt(prompt) => {
            let mut all = soft(model, prompt.num_virtual_tokens);
            all["peft_type"] = json!("PROMPT_TUNING");
            let (init, text) = match &prompt.init {
                PromptInit::Random => ("RANDOM", Value::Null),
                PromptInit::SampleVocab => ("SAMPLE_VOCAB", Value::Null),
                PromptInit::Text(text) => ("TEXT", json!(text)),
            };
            all["prompt_tuning_init"] = json!(init);
            all["tokenizer_name_or_path"] = if text.is_null() { Value::Null } else { json!(config.base) };
            all["prompt_tuning_init_text"] = text;
            all
        }
        Method::PTuning(p_tuning) => {
            let mut all = soft(model, p_tuning.num_virtual_tokens);
            let is_lstm = p_tuning.encoder == PromptEncoder::Lstm;
            let width = if p_tuning.hidden_size > 0 { p_tuning.hidden_size } else { model.spec().hidden_size };
            all["peft_type"] = json!("P_TUNING");
            all["encoder_reparameterization_type"] = json!(if is_lstm { "LSTM" } else { "MLP" });
            all["encoder_hidden_size"] = json!(width);
            all["encoder_num_layers"] = json!(p_tuning.num_layers);
            all["encoder_dropout"] = json!(0.0);
            all
        }
        Method::Bottleneck(_) => unreachable!("bottleneck adapters are written as AdapterHub does"),
    };
    if let (Some(out), Value::Object(method)) = (out.as_object_mut(), method) {
        out.extend(method);
        out.insert("modules_to_save".into(), list(&config.modules_to_save));
    }
    sorted(out)
}

fn soft(model: &LanguageModel, num_virtual_tokens: usize) -> Value {
    let spec = model.spec();
    json!({
        "num_virtual_tokens": num_virtual_tokens, "token_dim": spec.hidden_size, "num_transformer_submodules": 1,
        "num_attention_heads": spec.stack.layers[0].attention.num_attention_heads,
        "num_layers": spec.stack.layers.len(),
    })
}

/// Whether the family's files have weights as `[in, out]`.
fn is_transposed(model: &LanguageModel) -> bool {
    model.linear_sites().first().is_some_and(|site| site.is_transposed)
}

fn write_lora(lora: &Lora, config: &Config, model: &LanguageModel) -> Value {
    let init = match lora.init {
        LoraInit::Default => json!(true),
        LoraInit::Random => json!(false),
        LoraInit::Gaussian => json!("gaussian"),
        LoraInit::Pissa => json!("pissa"),
        LoraInit::Olora => json!("olora"),
    };
    let ranks: Map<String, Value> = lora.rank_pattern.iter().map(|(name, r)| (name.clone(), json!(r))).collect();
    let alphas: Map<String, Value> = lora.alpha_pattern.iter().map(|(name, a)| (name.clone(), number(*a))).collect();
    let tokens = if config.trainable_tokens.is_empty() { Value::Null } else { json!(config.trainable_tokens) };
    json!({
        "peft_type": "LORA", "r": lora.r, "lora_alpha": number(lora.alpha), "lora_dropout": lora.dropout,
        "target_modules": targets(model, &lora.targets, Column::Lora), "bias": "none", "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora, "rank_pattern": ranks, "alpha_pattern": alphas,
        "fan_in_fan_out": is_transposed(model), "init_lora_weights": init, "trainable_token_indices": tokens,
        "lora_bias": false,
    })
}

fn write_adalora(adalora: &AdaLora, model: &LanguageModel) -> Value {
    let pattern: Map<String, Value> =
        adalora.rank_pattern.iter().map(|(name, left)| (name.clone(), json!(left))).collect();
    json!({
        "peft_type": "ADALORA", "init_r": adalora.init_r, "target_r": adalora.target_r, "r": adalora.init_r,
        "lora_alpha": number(adalora.alpha), "lora_dropout": adalora.dropout, "tinit": adalora.tinit,
        "tfinal": adalora.tfinal, "deltaT": adalora.delta_t, "beta1": adalora.beta1, "beta2": adalora.beta2,
        "orth_reg_weight": adalora.orth_reg_weight, "total_step": adalora.total_step,
        "rank_pattern": if pattern.is_empty() { Value::Null } else { Value::Object(pattern) },
        "target_modules": targets(model, &adalora.targets, Column::AdaLora), "bias": "none",
        "fan_in_fan_out": is_transposed(model), "init_lora_weights": true,
    })
}

/// Keys in alphabetical order, as PEFT has them.
fn sorted(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let mut all: Vec<(String, Value)> = map.into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(all.into_iter().collect())
}

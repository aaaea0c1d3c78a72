//! Which element type each weight gets when a model is quantised: the mixes of llama.cpp, by the same rules.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use loam_kernels::quant::{can_quantise, dequantise_rows, quantise_rows, reads_halves_as_bf16};
use loam_tensor::{DType, GgmlType, Nf4, Parameter, Precision, Raw, SharedBytes, precision};

use crate::error::Error;
use crate::model::LanguageModel;
use crate::spec::{Spec, Task};

/// How much an error in each column of a weight matters, by the parameter's name: the mean square of what the column is
/// multiplied with.
pub type Importance = HashMap<String, Vec<f32>>;

/// A recipe for the element types of a model's weights, such as `q4_k_m`: a base type, and weights that get another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    name: &'static str,
    base: DType,
    size: Size,
    file_type: Option<u32>,
}

/// How many weights get more bits than the base type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// None but the head.
    Plain,
    Small,
    Medium,
    Large,
}

/// Name, base type, how many weights get more, number in GGUF files. NF4 comes behind these.
const MIXES: [(&str, GgmlType, Size, u32); 25] = [
    ("f32", GgmlType::F32, Size::Plain, 0),
    ("f16", GgmlType::F16, Size::Plain, 1),
    ("bf16", GgmlType::Bf16, Size::Plain, 32),
    ("q8_0", GgmlType::Q8_0, Size::Plain, 7),
    ("q6_k", GgmlType::Q6K, Size::Plain, 18),
    ("q5_k_m", GgmlType::Q5K, Size::Medium, 17),
    ("q5_k", GgmlType::Q5K, Size::Medium, 17),
    ("q5_k_s", GgmlType::Q5K, Size::Small, 16),
    ("q5_1", GgmlType::Q5_1, Size::Plain, 9),
    ("q5_0", GgmlType::Q5_0, Size::Plain, 8),
    ("q4_k_m", GgmlType::Q4K, Size::Medium, 15),
    ("q4_k", GgmlType::Q4K, Size::Medium, 15),
    ("q4_k_s", GgmlType::Q4K, Size::Small, 14),
    ("q4_1", GgmlType::Q4_1, Size::Plain, 3),
    ("q4_0", GgmlType::Q4_0, Size::Plain, 2),
    ("iq4_nl", GgmlType::Iq4Nl, Size::Plain, 25),
    ("iq4_xs", GgmlType::Iq4Xs, Size::Plain, 30),
    ("mxfp4", GgmlType::Mxfp4, Size::Plain, 38),
    ("q3_k_l", GgmlType::Q3K, Size::Large, 13),
    ("q3_k_m", GgmlType::Q3K, Size::Medium, 12),
    ("q3_k_s", GgmlType::Q3K, Size::Small, 11),
    ("q2_k", GgmlType::Q2K, Size::Medium, 10),
    ("q2_k_s", GgmlType::Q2K, Size::Small, 21),
    ("tq2_0", GgmlType::Tq2_0, Size::Plain, 37),
    ("tq1_0", GgmlType::Tq1_0, Size::Plain, 36),
];

/// What QLoRA trains on, as bitsandbytes makes it of a model: NF4 with double quantisation in the blocks, tables and head
/// as they are.
const NF4: Mix = Mix { name: "nf4", base: DType::Nf4, size: Size::Plain, file_type: None };

impl Mix {
    /// Every mix.
    pub fn all() -> impl Iterator<Item = Self> {
        let of_gguf =
            |(name, base, size, number)| Self { name, base: DType::Ggml(base), size, file_type: Some(number) };
        MIXES.into_iter().map(of_gguf).chain([NF4])
    }

    /// Its name, in small letters.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// `general.file_type` of GGUF files, where they have the type.
    pub fn file_type(self) -> Option<u32> {
        self.file_type
    }

    /// The type of a weight of `width` columns, or `None` for what stays as it is: norms, biases, positions, routers.
    fn type_of(self, spec: &Spec, name: &str, width: usize) -> Option<DType> {
        let place = Place::of(spec, name)?;
        let DType::Ggml(base) = self.base else { return place.is_inside.then_some(self.base) };
        let wanted = if base.is_quantised() { self.wanted(base, spec, place) } else { base };
        Some(DType::Ggml(fitting(wanted, width)))
    }

    /// llama.cpp's choice where the width is no obstacle.
    fn wanted(self, base: GgmlType, spec: &Spec, place: Place) -> GgmlType {
        use GgmlType::{Iq4Nl, Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K, Q8_0};
        let attention = &spec.stack.layers[0].attention;
        let shares_values = attention.num_attention_heads >= 4 * attention.num_key_value_heads;
        let eight_experts = spec.stack.layers[0].experts.is_some_and(|experts| experts.num_experts == 8);
        match (place.role, base, self.size) {
            (Role::Head, Q8_0, _) => Q8_0,
            (Role::Head, ..) => Q6K,
            (Role::Value | Role::Key, ..) if eight_experts => Q8_0,
            (Role::Value, Q2K, _) if shares_values => Q4K,
            (Role::Value, Q2K, Size::Medium) => Q3K,
            (Role::Value, Q3K, Size::Medium) => {
                if place.layer < 2 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Role::Value, Q3K, Size::Large) => Q5K,
            (Role::Value, Iq4Nl | Iq4Xs, _) if shares_values => Q5K,
            (Role::Value | Role::Down, Q4K | Q5K, Size::Medium) if place.gets_more_bits() => Q6K,
            (Role::Value, Q4K, Size::Small) if place.layer < 4 => Q5K,
            (Role::Down, Q2K, Size::Medium) => Q3K,
            (Role::Down, Q2K, _) if place.layer < place.layers / 8 => Q4K,
            (Role::Down, Q3K, Size::Medium) => {
                if place.layer < place.layers / 16 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Role::Down, Q3K, Size::Large) => Q5K,
            (Role::Down, Iq4Nl | Iq4Xs, _) if place.layer < place.layers / 8 => Q5K,
            (Role::Down, Q4K, Size::Small) if place.layer < place.layers / 8 => Q5K,
            (Role::Output, Q2K | Q3K | Q4K | Iq4Nl | Iq4Xs, size) if eight_experts && size != Size::Large => Q5K,
            (Role::Output, Q2K, Size::Medium) => Q3K,
            (Role::Output, Q3K, Size::Medium) => Q4K,
            (Role::Output, Q3K, Size::Large) => Q5K,
            (_, base, _) => base,
        }
    }
}

impl FromStr for Mix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::all().find(|mix| mix.name.eq_ignore_ascii_case(text)).ok_or_else(|| {
            let names: Vec<&str> = Self::all().map(|mix| mix.name).collect();
            Error::Input(format!("unknown quantisation `{text}`; known are {}", names.join(", ")))
        })
    }
}

/// Whether a parameter of that name is read by products and lookups alone, so that it can have any element type.
pub(crate) fn can_be_typed(spec: &Spec, name: &str) -> bool {
    Place::of(spec, name).is_some()
}

/// What a weight is for.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// The head over tokens, or the token table that is one, too.
    Head,
    Key,
    Value,
    /// What attention writes to the residual stream.
    Output,
    /// What the feed-forward network writes to it.
    Down,
    Other,
}

/// A weight's role and the block it is in.
#[derive(Clone, Copy)]
struct Place {
    role: Role,
    /// Whether it is in a block.
    is_inside: bool,
    layer: usize,
    layers: usize,
}

impl Place {
    fn of(spec: &Spec, name: &str) -> Option<Self> {
        let (bare, layers) = match (name.strip_prefix("encoder."), &spec.encoder) {
            (Some(bare), Some(encoder)) => (bare, encoder.layers.len()),
            _ => (name, spec.stack.layers.len()),
        };
        let is_head = match name {
            "lm_head.weight" => true,
            "embed_tokens.weight" => spec.head.task == Task::LanguageModel && spec.tie_word_embeddings,
            _ => false,
        };
        let Some((layer, rest)) = bare.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
            let role = if is_head { Role::Head } else { Role::Other };
            return (is_head || name == "embed_tokens.weight").then_some(Self {
                role,
                is_inside: false,
                layer: 0,
                layers,
            });
        };
        let role = match rest.strip_suffix("_proj.weight")?.rsplit('.').next()? {
            "k" => Role::Key,
            "v" => Role::Value,
            "o" => Role::Output,
            "down" => Role::Down,
            _ => Role::Other,
        };
        Some(Self { role, is_inside: true, layer: layer.parse().ok()?, layers })
    }

    /// The first and the last eighth of the blocks, and every third between.
    fn gets_more_bits(self) -> bool {
        let eighth = self.layers / 8;
        self.layer < eighth || self.layer >= 7 * self.layers / 8 || (self.layer - eighth) % 3 == 2
    }
}

/// The type itself, or one with smaller blocks where `width` is no whole number of its own.
fn fitting(ty: GgmlType, width: usize) -> GgmlType {
    if width.is_multiple_of(ty.block_len()) {
        return ty;
    }
    let smaller = match ty {
        GgmlType::Q2K | GgmlType::Q3K => GgmlType::Q4_0,
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        GgmlType::Q6K => GgmlType::Q8_0,
        GgmlType::Iq4Xs => GgmlType::Iq4Nl,
        other => other,
    };
    if width.is_multiple_of(smaller.block_len()) { smaller } else { GgmlType::F16 }
}

/// The type that blocks of a file are kept in: where products of bf16 are in force and do not read other halves, those are
/// rounded once. (Where they do, lookups and gradients have all digits of them.)
pub fn kept_type(ty: GgmlType) -> GgmlType {
    let is_rounded = ty == GgmlType::F16 && precision() == Precision::Bf16 && !reads_halves_as_bf16();
    if is_rounded { GgmlType::Bf16 } else { ty }
}

/// The element type of every weight that gets one, by the parameter's name.
pub type Plan = BTreeMap<String, DType>;

impl LanguageModel {
    /// What `mix` makes of each weight.
    pub fn plan(&self, mix: Mix) -> Plan {
        let typed = |(name, parameter): (String, Parameter)| {
            let shape = parameter.shape();
            let ty = (shape.len() == 2).then(|| mix.type_of(self.spec(), &name, shape[1])).flatten()?;
            Some((name, ty))
        };
        self.parameters().into_iter().filter_map(typed).collect()
    }

    /// Encodes the weights as `plan` says, for running the model: they can no longer be trained. Refuses names that the
    /// model lacks, and types that its widths do not allow.
    pub fn quantise(&self, plan: &Plan, importance: Option<&Importance>) -> Result<(), Error> {
        let parameters: HashMap<String, Parameter> = self.parameters().into_iter().collect();
        for (name, &ty) in plan {
            let parameter = parameters.get(name);
            let parameter =
                parameter.ok_or_else(|| Error::Input(format!("the model has no weight {name} to quantise")))?;
            let shape = parameter.shape();
            let width = shape.width();
            if shape.len() != 2 || !can_encode(ty, width) {
                return Err(Error::Input(format!("{name} {shape:?} cannot be written as {ty}")));
            }
            let importance = importance.and_then(|all| all.get(name)).map(Vec::as_slice);
            if importance.is_some_and(|columns| columns.len() != width) {
                return Err(Error::Input(format!("the importances of {name} are not those of its {width} columns")));
            }
            parameter.replace(encoded(parameter, ty, importance));
        }
        Ok(())
    }

    /// Bytes of all weights as they are now, tied ones once.
    pub fn weight_bytes(&self) -> usize {
        self.parameters().iter().map(|(_, parameter)| parameter.bytes()).sum()
    }

    /// Whether any weight is not in f32.
    pub fn is_quantised(&self) -> bool {
        self.parameters().iter().any(|(_, parameter)| parameter.dtype() != DType::F32)
    }
}

/// Whether rows of `width` can be rounded to the type.
fn can_encode(ty: DType, width: usize) -> bool {
    match ty {
        DType::Ggml(ty) => can_quantise(ty) && ty.bytes(width).is_some(),
        other => other == DType::Nf4,
    }
}

/// Numbers that are decoded at a time to be rounded anew: 4 MiB.
const DECODED: usize = 1 << 20;

fn encoded(parameter: &Parameter, ty: DType, importance: Option<&[f32]>) -> Raw {
    let (shape, value) = (parameter.shape(), parameter.value());
    let [rows, width] = [shape[0], shape[1]];
    let DType::Ggml(ty) = ty else { return Raw::nf4(Nf4::encode(&parameter.to_vec(), true), [rows, width]) };
    let mut bytes = vec![0; DType::Ggml(ty).bytes(value.count())];
    match value.as_quantised() {
        Some(from) => {
            let (row, to_row) = (from.bytes.len() / rows.max(1), bytes.len() / rows.max(1));
            let together = (DECODED / width.max(1)).max(1);
            let mut wide = vec![0.0; together.min(rows) * width];
            for (from_rows, out) in
                from.bytes.chunks((together * row).max(1)).zip(bytes.chunks_mut((together * to_row).max(1)))
            {
                let wide = &mut wide[..from_rows.len() / row * width];
                dequantise_rows(from.ty, from_rows, wide);
                quantise_rows(ty, wide, width, importance, out);
            }
        }
        None if value.dtype() == DType::F32 => quantise_rows(ty, value.f32(), width, importance, &mut bytes),
        None => quantise_rows(ty, &parameter.to_vec(), width, importance, &mut bytes),
    }
    let bytes: SharedBytes = Arc::new(bytes);
    Raw::quantised(ty, [rows, width], bytes, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model(config: serde_json::Value) -> LanguageModel {
        LanguageModel::new(&config, 1).expect("a valid configuration")
    }

    fn wide(layers: usize) -> LanguageModel {
        model(json!({
            "model_type": "llama", "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40, "tie_word_embeddings": false,
        }))
    }

    fn mix(name: &str) -> Mix {
        name.parse().expect("a known mix")
    }

    #[test]
    fn the_medium_mix_gives_more_bits_to_values_and_down_projections_of_some_layers() {
        let model = wide(8);
        let plan = model.plan(mix("Q4_K_M"));
        let of = |name: &str| match plan.get(name)? {
            DType::Ggml(ty) => Some(*ty),
            other => panic!("{name} is {other}"),
        };
        for (layer, is_more) in [true, false, false, true, false, false, true, true].into_iter().enumerate() {
            let ty = if is_more { GgmlType::Q6K } else { GgmlType::Q4K };
            assert_eq!(of(&format!("layers.{layer}.attention.v_proj.weight")), Some(ty), "layer {layer}");
            assert_eq!(of(&format!("layers.{layer}.feed_forward.down_proj.weight")), Some(ty), "layer {layer}");
            assert_eq!(of(&format!("layers.{layer}.attention.q_proj.weight")), Some(GgmlType::Q4K));
        }
        assert_eq!((of("lm_head.weight"), of("embed_tokens.weight")), (Some(GgmlType::Q6K), Some(GgmlType::Q4K)));
        assert_eq!((of("norm.weight"), of("layers.0.attention_norm.weight")), (None, None));
        let small = model.plan(mix("q4_k_s"));
        assert_eq!(small["layers.3.attention.v_proj.weight"], DType::Ggml(GgmlType::Q5K));
        assert_eq!(small["layers.4.attention.v_proj.weight"], DType::Ggml(GgmlType::Q4K));
        assert_eq!(small["layers.0.feed_forward.down_proj.weight"], DType::Ggml(GgmlType::Q5K));
        assert_eq!(small["layers.1.feed_forward.down_proj.weight"], DType::Ggml(GgmlType::Q4K));
    }

    #[test]
    fn nf4_is_for_the_matrices_of_the_blocks() {
        let model = wide(2);
        let plan = model.plan(mix("nf4"));
        assert!(plan.values().all(|ty| *ty == DType::Nf4) && plan.len() == 2 * 7, "{plan:?}");
        assert!(plan.keys().all(|name| name.starts_with("layers.")));
        model.quantise(&plan, None).expect("any width fits");
        let parameters = model.parameters();
        assert!(parameters.iter().all(|(name, parameter)| parameter.is_trainable() != plan.contains_key(name)));
        let blocks: usize = parameters.iter().filter(|(name, _)| plan.contains_key(name)).map(|(_, p)| p.count()).sum();
        let bytes: usize = parameters.iter().filter(|(name, _)| plan.contains_key(name)).map(|(_, p)| p.bytes()).sum();
        assert!(bytes as f64 * 8.0 / (blocks as f64) < 4.5 && bytes * 2 > blocks, "{bytes} for {blocks}");
    }

    #[test]
    fn widths_that_large_blocks_do_not_fit_take_smaller_ones() {
        let model = model(json!({
            "model_type": "llama", "hidden_size": 96, "intermediate_size": 100, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 40, "tie_word_embeddings": true,
        }));
        let plan = model.plan(mix("q4_k_s"));
        assert_eq!(plan["layers.0.attention.q_proj.weight"], DType::Ggml(GgmlType::Q5_0));
        assert_eq!(plan["layers.0.attention.v_proj.weight"], DType::Ggml(GgmlType::Q5_1));
        assert_eq!(plan["layers.0.feed_forward.down_proj.weight"], DType::Ggml(GgmlType::F16));
        assert_eq!(plan["embed_tokens.weight"], DType::Ggml(GgmlType::Q8_0));
        model.quantise(&plan, None).expect("a plan of its own");
        assert!(model.weight_bytes() * 4 < model.num_parameters() * 4);
    }

    #[test]
    fn halves_are_rounded_anew_as_the_same_numbers_in_f32_are() {
        // More numbers than are decoded at a time, and no whole number of pieces.
        let config = json!({
            "model_type": "gpt2", "vocab_size": 4500, "n_embd": 256, "n_layer": 1, "n_head": 4, "n_positions": 16,
        });
        let [halves, wide] = [model(config.clone()), model(config)];
        halves.quantise(&halves.plan(mix("bf16")), None).expect("any width fits");
        for ((_, narrow), (_, wide)) in halves.parameters().iter().zip(wide.parameters()) {
            wide.replace(Raw::from_f32(&narrow.to_vec(), narrow.shape()));
        }
        let plan = halves.plan(mix("q8_0"));
        for model in [&halves, &wide] {
            model.quantise(&plan, None).expect("a plan of its own");
        }
        let table = |model: &LanguageModel| model.parameters()[0].1.clone();
        assert_eq!(table(&halves).dtype(), DType::Ggml(GgmlType::Q8_0));
        assert!(table(&halves).count() > DECODED && table(&halves).to_vec() == table(&wide).to_vec());
    }

    #[test]
    fn a_plan_for_another_model_is_refused() {
        let model = wide(1);
        let refused = |name: &str, ty| {
            model.quantise(&Plan::from([(name.to_owned(), DType::Ggml(ty))]), None).unwrap_err().to_string()
        };
        assert!(refused("layers.7.attention.q_proj.weight", GgmlType::Q4K).contains("no weight layers.7"));
        assert!(refused("norm.weight", GgmlType::Q4K).contains("cannot be written as Q4_K"));
        assert!("q4_m".parse::<Mix>().unwrap_err().to_string().contains("q4_k_m"));
    }
}

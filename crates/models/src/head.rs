//! What turns hidden states into scores: of tokens, of classes, of answers.

use std::ops::Range;

use loam_nn::{Activation, Hooks, Linear, Module, Norm, Slot, TableHook, join};
use loam_tensor::{Parameter, Tensor};

use crate::spec::{HeadSpec, Reads, Spec, Task, TransformSpec};

/// `norm(activation(W x + b))`.
struct Transform {
    dense: Linear,
    activation: Activation,
    norm: Option<Norm>,
}

impl Transform {
    fn zeros(hidden_size: usize, spec: &TransformSpec) -> Self {
        Self {
            dense: Linear::zeros(hidden_size, hidden_size, spec.has_bias),
            activation: spec.activation,
            norm: spec.norm.map(|norm| Norm::new(hidden_size, norm)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.dense.apply(x).unary(self.activation.0);
        self.norm.as_ref().map_or(y.clone(), |norm| norm.forward(&y))
    }
}

/// A head. A language model's may borrow its weight from the token table.
pub(crate) struct Head {
    spec: HeadSpec,
    transform: Option<Transform>,
    /// Scores; `None` where they come from the token table, or not at all.
    output: Option<Parameter>,
    bias: Option<Parameter>,
    /// What scores instead, where something does.
    pub(crate) hook: Slot<dyn TableHook>,
}

impl Head {
    /// Zero weights.
    pub(crate) fn zeros(spec: &Spec) -> Self {
        let (head, hidden) = (spec.head, spec.hidden_size);
        let rows = if head.task == Task::LanguageModel { spec.vocab_size } else { head.num_labels };
        let is_own = rows > 0 && !(head.task == Task::LanguageModel && spec.tie_word_embeddings);
        let bias = head.has_bias.then(|| Parameter::zeros([rows]));
        if let Some(bias) = &bias {
            bias.set_trainable(!head.is_bias_frozen);
        }
        Self {
            spec: head,
            transform: head.transform.map(|transform| Transform::zeros(hidden, &transform)),
            output: is_own.then(|| Parameter::zeros([rows, hidden])),
            bias,
            hook: Slot::default(),
        }
    }

    /// What the scores' product reads: `hidden` scaled and transformed.
    pub(crate) fn input(&self, hidden: &Tensor) -> Tensor {
        let scaled = self.spec.scale.map_or(hidden.clone(), |scale| hidden.scale(scale));
        self.transform.as_ref().map_or(scaled.clone(), |transform| transform.forward(&scaled))
    }

    /// The product's weight `[outputs, hidden]`, where the head has one of its own.
    pub(crate) fn weight(&self) -> Option<&Parameter> {
        self.output.as_ref()
    }

    /// The product's bias `[outputs]`.
    pub(crate) fn bias(&self) -> Option<Tensor> {
        self.bias.as_ref().map(Tensor::parameter)
    }

    /// Scores of what the head reads of `hidden` `[.., hidden]`: `[documents, labels]`, or `[positions, labels]` where it
    /// reads every one; without labels what comes before them.
    pub(crate) fn scores(&self, hidden: &Tensor, documents: &[Range<usize>], hooks: &Hooks) -> Tensor {
        let input = self.input(&pool(hidden, documents, self.spec.reads));
        match &self.output {
            Some(weight) => {
                let hooked = self.hook.of(hooks).map(|hook| hook.table(weight, false));
                input.linear(&hooked.unwrap_or_else(|| Tensor::parameter(weight)), self.bias().as_ref())
            }
            None => input,
        }
    }
}

/// One vector per document, or all: `hidden` is `[.., width]`, documents are ranges of its positions, counted through.
pub fn pool(hidden: &Tensor, documents: &[Range<usize>], reads: Reads) -> Tensor {
    let width = hidden.shape().width();
    let positions = hidden.count() / width;
    let hidden = hidden.reshape([positions, width]);
    let rows = |place: fn(&Range<usize>) -> usize| {
        let places: Vec<u32> = documents.iter().map(|document| place(document) as u32).collect();
        hidden.embedding(&places, [documents.len()])
    };
    match reads {
        Reads::Every => hidden,
        Reads::First => rows(|document| document.start),
        Reads::Last => rows(|document| document.end - 1),
        Reads::Mean => {
            let mut shares = vec![0.0; documents.len() * positions];
            for (row, document) in shares.chunks_exact_mut(positions).zip(documents) {
                row[document.clone()].fill(1.0 / document.len() as f32);
            }
            Tensor::from_slice(&shares, [documents.len(), positions]).matmul(&hidden)
        }
    }
}

impl Module for Head {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        let path = join(path, self.spec.task.module());
        if let Some(transform) = &self.transform {
            transform.dense.visit(&join(&path, "dense"), visit);
            transform.norm.visit(&join(&path, "norm"), visit);
        }
        if let Some(weight) = &self.output {
            visit(join(&path, "weight"), weight);
        }
        if let Some(bias) = &self.bias {
            visit(join(&path, "bias"), bias);
        }
    }
}

//! What stands in the way of more, and the smallest change that gets past it.

use super::{Plan, Row};
use crate::table::bytes;
use loam_models::{KvType, RunShape, run_memory};

/// What binds first.
pub fn limit(plan: &Plan, row: &Row) -> String {
    let m = &row.memory;
    if !plan.fits(m) {
        let parts =
            [(m.weights, "weights"), (m.kv, "keys and values"), (m.activations + m.scratch + m.gaps, "activations")];
        let (size, name) = parts.into_iter().max().unwrap_or_default();
        let over = m.peak - plan.available;
        return format!("memory binds: {} too much, most of it {name} ({})", bytes(over), bytes(size));
    }
    let (largest, most) = (plan.largest_context(row), plan.outline.spec().max_position_embeddings);
    if largest < most {
        return format!("memory binds at a context of {largest}");
    }
    format!("the model's own context of {most} binds, memory does not")
}

/// The cheapest change that makes the row fit, or makes more of it.
pub fn way_past(plan: &Plan, row: &Row) -> String {
    let spec = plan.outline.spec();
    let own = plan.weights[row.weights].memory;
    let fits = |shape: RunShape| plan.fits(&run_memory(spec, own, &shape));
    if plan.fits(&row.memory) {
        let Some(pace) = row.pace else { return "nothing to do".into() };
        let faster = plan.weights.iter().filter(|w| w.memory.mapped + w.memory.copied < own.mapped + own.copied);
        // Decoding one sequence reads every weight once per token.
        return match faster.min_by_key(|w| w.memory.mapped + w.memory.copied) {
            Some(other) if pace.is_bound_by_weights() => {
                format!(
                    "decoding is bound by reading weights: {} would read {:.0} % of the bytes",
                    other.name,
                    100.0 * (other.memory.mapped + other.memory.copied) as f64 / (own.mapped + own.copied) as f64
                )
            }
            _ => "nothing to do".into(),
        };
    }
    // From what costs nothing to what costs quality, then use.
    for chunk in
        [row.shape.chunk / 2, row.shape.chunk / 4, 64, 16].into_iter().filter(|&n| n > 0 && n < row.shape.chunk)
    {
        if fits(RunShape { chunk, ..row.shape }) {
            return format!("--chunk {chunk} fits, prompts are read more slowly");
        }
    }
    let smaller = |kv: &&KvType| kv.bytes() < row.shape.kv.bytes();
    let halves = KvType::ALL.iter().filter(smaller).find(|&&kv| fits(RunShape { kv, ..row.shape }));
    if let Some(kv) = halves {
        return format!("--kv {} fits", kv.name());
    }
    let mut types: Vec<(usize, String)> = loam_models::Mix::all()
        .filter_map(|mix| {
            let memory = plan.outline.mapped_memory(mix).ok()?;
            let fits = plan.fits(&run_memory(spec, memory, &row.shape));
            fits.then(|| (memory.mapped + memory.copied, mix.name().to_owned()))
        })
        .collect();
    types.sort();
    if let Some((size, name)) = types.pop() {
        return format!("weights in {name} fit ({})", bytes(size));
    }
    match plan.largest_context(row) {
        0 => "it does not fit with any type: a smaller model, or more memory".into(),
        context => format!("--context {context} fits"),
    }
}

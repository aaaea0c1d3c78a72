//! Counters and histograms in the text format of Prometheus, under the names that dashboards of vLLM read.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use loam_infer::scheduler::{SchedulerStats, Times};

const TO_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const OF_A_REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0];

#[derive(Debug)]
struct Histogram {
    name: &'static str,
    help: &'static str,
    edges: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(name: &'static str, help: &'static str, edges: &'static [f64]) -> Self {
        Self { name, help, edges, counts: vec![0; edges.len() + 1], sum: 0.0 }
    }

    fn record(&mut self, value: f64) {
        let bucket = self.edges.iter().position(|edge| value <= *edge).unwrap_or(self.edges.len());
        self.counts[bucket] += 1;
        self.sum += value;
    }

    fn write(&self, out: &mut String, model: &str, is_first: bool) {
        let name = self.name;
        if is_first {
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} histogram", self.help);
        }
        let mut total = 0;
        for (count, edge) in self.counts.iter().zip(self.edges) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{model_name=\"{model}\",le=\"{edge:?}\"}} {total}");
        }
        total += self.counts[self.edges.len()];
        let _ = writeln!(out, "{name}_bucket{{model_name=\"{model}\",le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum{{model_name=\"{model}\"}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{model_name=\"{model}\"}} {total}");
    }
}

/// What is measured of one model's requests.
#[derive(Debug)]
pub(crate) struct ModelMetrics(Mutex<Measured>);

#[derive(Debug)]
struct Measured {
    to_first_token: Histogram,
    between_tokens: Histogram,
    request: Histogram,
    queued: Histogram,
    prompt: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    written_tokens: Histogram,
    finished: BTreeMap<&'static str, u64>,
}

impl Measured {
    fn histograms(&self) -> [&Histogram; 8] {
        [
            &self.to_first_token,
            &self.between_tokens,
            &self.request,
            &self.queued,
            &self.prompt,
            &self.decode,
            &self.prompt_tokens,
            &self.written_tokens,
        ]
    }
}

impl Default for ModelMetrics {
    fn default() -> Self {
        let h = Histogram::new;
        Self(Mutex::new(Measured {
            to_first_token: h("vllm:time_to_first_token_seconds", "Time to the first token.", TO_FIRST_TOKEN),
            between_tokens: h("vllm:inter_token_latency_seconds", "Time between tokens.", BETWEEN_TOKENS),
            request: h("vllm:e2e_request_latency_seconds", "Time of whole requests.", OF_A_REQUEST),
            queued: h("vllm:request_queue_time_seconds", "Time in the queue.", OF_A_REQUEST),
            prompt: h("vllm:request_prefill_time_seconds", "Time until the prompt was read.", OF_A_REQUEST),
            decode: h("vllm:request_decode_time_seconds", "Time of writing.", OF_A_REQUEST),
            prompt_tokens: h("vllm:request_prompt_tokens", "Tokens of prompts.", TOKENS),
            written_tokens: h("vllm:request_generation_tokens", "Tokens written per request.", TOKENS),
            finished: BTreeMap::new(),
        }))
    }
}

impl ModelMetrics {
    fn with<R>(&self, work: impl FnOnce(&mut Measured) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn first_token(&self, after: Duration) {
        self.with(|m| m.to_first_token.record(after.as_secs_f64()));
    }

    pub fn next_token(&self, after: Duration) {
        self.with(|m| m.between_tokens.record(after.as_secs_f64()));
    }

    pub fn finished(&self, reason: &'static str, times: Option<Times>, prompt_tokens: usize, written_tokens: usize) {
        self.with(|m| {
            *m.finished.entry(reason).or_default() += 1;
            if let Some(times) = times {
                m.request.record((times.queued + times.prompt + times.decode).as_secs_f64());
                m.queued.record(times.queued.as_secs_f64());
                m.prompt.record(times.prompt.as_secs_f64());
                m.decode.record(times.decode.as_secs_f64());
                m.prompt_tokens.record(prompt_tokens as f64);
                m.written_tokens.record(written_tokens as f64);
            }
        });
    }
}

/// Answers by path and status.
#[derive(Debug, Default)]
pub(crate) struct HttpMetrics(Mutex<BTreeMap<(String, u16), u64>>);

impl HttpMetrics {
    pub fn answered(&self, path: &str, status: u16) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((path.to_owned(), status)).or_default() += 1;
    }
}

/// One model's part of a page.
pub(crate) struct Page<'a> {
    pub model: &'a str,
    pub stats: SchedulerStats,
    pub kv_tokens: usize,
    pub metrics: &'a ModelMetrics,
}

/// The whole page.
pub(crate) fn render(models: &[Page<'_>], http: &HttpMetrics) -> String {
    let mut out = String::new();
    let mut plain = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Page<'_>) -> f64| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for page in models {
            let _ = writeln!(out, "{name}{{model_name=\"{}\"}} {}", escape(page.model), value(page));
        }
    };
    plain("vllm:num_requests_running", "gauge", "Texts being written.", &|p| p.stats.running as f64);
    plain("vllm:num_requests_waiting", "gauge", "Requests in the queue.", &|p| p.stats.waiting as f64);
    plain("vllm:kv_cache_usage_perc", "gauge", "Share of the token budget in use; 1 is all.", &|p| {
        p.stats.kv_tokens as f64 / p.kv_tokens.max(1) as f64
    });
    plain("vllm:num_preemptions_total", "counter", "Always 0: no text is thrown out.", &|_| 0.0);
    plain("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked for among kept beginnings.", &|p| {
        p.stats.prefix_queries as f64
    });
    plain("vllm:prefix_cache_hits_total", "counter", "Those that were found.", &|p| p.stats.prefix_hits as f64);
    plain("vllm:prompt_tokens_total", "counter", "Prompt tokens read.", &|p| p.stats.prompt_tokens as f64);
    plain("vllm:generation_tokens_total", "counter", "Tokens written.", &|p| p.stats.written_tokens as f64);
    plain("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens that were guessed ahead.", &|p| {
        p.stats.guessed_tokens as f64
    });
    plain("vllm:spec_decode_num_accepted_tokens_total", "counter", "Guesses that were right.", &|p| {
        p.stats.accepted_tokens as f64
    });
    plain("loam:engine_steps_total", "counter", "Passes of the model.", &|p| p.stats.steps as f64);
    let name = "vllm:request_success_total";
    let _ = writeln!(out, "# HELP {name} Requests by how they ended.\n# TYPE {name} counter");
    for page in models {
        page.metrics.with(|m| {
            for (reason, count) in &m.finished {
                let model = escape(page.model);
                let _ = writeln!(out, "{name}{{model_name=\"{model}\",finished_reason=\"{reason}\"}} {count}");
            }
        });
    }
    let kinds = ModelMetrics::default().with(|m| m.histograms().len());
    for kind in 0..kinds {
        for (index, page) in models.iter().enumerate() {
            page.metrics.with(|m| m.histograms()[kind].write(&mut out, &escape(page.model), index == 0));
        }
    }
    let name = "loam:http_requests_total";
    let _ = writeln!(out, "# HELP {name} Answers by path and status.\n# TYPE {name} counter");
    for ((path, status), count) in http.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = writeln!(out, "{name}{{path=\"{}\",status=\"{status}\"}} {count}", escape(path));
    }
    out
}

/// A label's value.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_is_at_most_their_edge() {
        let metrics = ModelMetrics::default();
        for ms in [1, 30, 900_000_000] {
            metrics.first_token(Duration::from_millis(ms));
        }
        let http = HttpMetrics::default();
        http.answered("/v1/models", 200);
        let page = Page { model: "a\"b", stats: SchedulerStats::default(), kv_tokens: 10, metrics: &metrics };
        let text = render(&[page], &http);
        let line = |le: &str| format!("vllm:time_to_first_token_seconds_bucket{{model_name=\"a\\\"b\",le=\"{le}\"}}");
        for (edge, count) in [("0.001", 1), ("0.02", 1), ("0.04", 2), ("2560.0", 2), ("+Inf", 3)] {
            assert!(text.contains(&format!("{} {count}\n", line(edge))), "{edge}: {text}");
        }
        assert!(text.contains("loam:http_requests_total{path=\"/v1/models\",status=\"200\"} 1"));
        assert_eq!(text.matches("# TYPE vllm:time_to_first_token_seconds ").count(), 1);
    }
}

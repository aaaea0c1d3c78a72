//! Where the time of steps went, operation by operation.

use super::{Roof, round};
use crate::table::Table;
use loam_tensor::profile::OpCost;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The operations of an average step, most expensive first.
pub(in crate::commands) struct Operations {
    /// As JSON.
    pub rows: Value,
    roof: String,
    table: Table,
}

impl Operations {
    /// What operations have cost in so many steps, which took so many seconds.
    pub fn of(costs: &BTreeMap<&'static str, OpCost>, steps: f64, seconds: f64, roof: &Roof) -> Self {
        let mut costs: Vec<(&str, OpCost)> = costs.iter().map(|(name, cost)| (*name, *cost)).collect();
        costs.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        let accounted: f64 = costs.iter().map(|(_, cost)| cost.seconds).sum();
        costs.push(("(everything else)", OpCost { seconds: seconds - accounted, ..OpCost::default() }));
        let mut table = Table::new(&["operation", "calls", "ms", "share", "GFLOP/s", "GB/s", "of roof"]);
        let mut rows = Vec::new();
        for (name, cost) in &costs {
            let rate = |amount: f64| if cost.seconds > 0.0 { amount / cost.seconds / 1e9 } else { 0.0 };
            let (gflop, gb, of_roof) =
                (rate(cost.flop), rate(cost.bytes), roof.share(cost.flop, cost.bytes, cost.seconds.max(1e-9)));
            let (calls, ms, share) = (cost.calls as f64 / steps, cost.seconds / steps * 1e3, cost.seconds / seconds);
            rows.push(json!({
                "operation": name, "calls": calls, "ms": round(ms, 3), "share": round(share, 4),
                "gflop_per_s": round(gflop, 1), "gb_per_s": round(gb, 1), "of_roof": round(of_roof, 3),
            }));
            table.row(vec![
                (*name).to_owned(),
                format!("{calls:.0}"),
                format!("{ms:.2}"),
                format!("{:.1} %", 100.0 * share),
                if cost.flop > 0.0 { format!("{gflop:.1}") } else { "-".into() },
                if cost.bytes > 0.0 { format!("{gb:.1}") } else { "-".into() },
                if cost.bytes > 0.0 { format!("{:.0} %", 100.0 * of_roof) } else { "-".into() },
            ]);
        }
        let roof = format!(
            "roof: {:.1} GFLOP/s, {:.1} GB/s read from memory (more from a cache)",
            roof.flop_per_s / 1e9,
            roof.bytes_per_s / 1e9
        );
        Self { rows: Value::Array(rows), roof, table }
    }

    /// As a person reads them.
    pub fn lines(&self) -> Vec<String> {
        [self.roof.clone()].into_iter().chain(self.table.lines()).collect()
    }
}

//! The loss curve of a run, and shares as bars, as SVG.

use plotters::prelude::*;

use crate::metrics::Row;

const SIZE: (u32, u32) = (900, 480);
/// Points of the training curve: more would only make the file larger.
const MAX_POINTS: usize = 600;

/// `loss.svg`: training loss, averaged over neighbouring steps, and held-out loss over the steps.
pub fn loss_svg(rows: &[Row]) -> String {
    let train = smooth(rows);
    let held_out: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Eval(row) => Some((row.step as f64, row.eval_loss)),
            Row::Step(_) => None,
        })
        .collect();
    let mut svg = String::new();
    if let Err(error) = draw(&mut svg, &train, &held_out) {
        // Drawing into a string cannot fail but for a bug; the report is still worth having.
        svg = format!("<svg xmlns=\"http://www.w3.org/2000/svg\"><text y=\"20\">no plot: {error}</text></svg>");
    }
    svg
}

/// Means over equal stretches of steps.
fn smooth(rows: &[Row]) -> Vec<(f64, f64)> {
    let steps: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Step(row) => Some((row.step as f64, row.loss)),
            Row::Eval(_) => None,
        })
        .collect();
    let stretch = steps.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / count, part.iter().map(|p| p.1).sum::<f64>() / count)
    };
    steps.chunks(stretch).map(mean).collect()
}

fn draw(
    svg: &mut String,
    train: &[(f64, f64)],
    held_out: &[(f64, f64)],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let all = || train.iter().chain(held_out);
    let last = all().map(|p| p.0).fold(1.0, f64::max);
    let high = all().map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max);
    let low = all().map(|p| p.1).fold(high, f64::min);
    let margin = (high - low).max(0.01 * high) * 0.05;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, (low - margin).max(0.0)..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(BLACK.mix(0.05))
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .draw()?;
    let (blue, red) = (RGBColor(31, 119, 180), RGBColor(214, 39, 40));
    chart
        .draw_series(LineSeries::new(train.iter().copied(), blue.stroke_width(1)))?
        .label("training")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], blue.stroke_width(2)));
    if !held_out.is_empty() {
        chart
            .draw_series(LineSeries::new(held_out.iter().copied(), red.stroke_width(2)).point_size(3))?
            .label("held out")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], red.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    drop(chart);
    Ok(())
}

/// Shares between 0 and 1 as groups of bars: one group per name, in it a bar per series; what is `None` has no bar.
pub fn bars_svg(series: &[&str], groups: &[(String, Vec<Option<f64>>)]) -> String {
    let mut svg = String::new();
    if let Err(error) = draw_bars(&mut svg, series, groups) {
        svg = format!("<svg xmlns=\"http://www.w3.org/2000/svg\"><text y=\"20\">no plot: {error}</text></svg>");
    }
    svg
}

/// Colours of series of bars.
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(44, 160, 44), RGBColor(255, 127, 14), RGBColor(148, 103, 189)];

fn draw_bars(
    svg: &mut String,
    series: &[&str],
    groups: &[(String, Vec<Option<f64>>)],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..groups.len().max(1) as f64, 0.0..100.0)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(BLACK.mix(0.05))
        .x_labels(0)
        .y_desc("%")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    let width = 0.8 / series.len().max(1) as f64;
    for (place, name) in series.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let bars = groups.iter().enumerate().filter_map(|(group, (_, values))| {
            let left = group as f64 + 0.1 + width * place as f64;
            let share = (*values.get(place)?)?;
            Some(Rectangle::new([(left, 0.0), (left + width, 100.0 * share)], colour.filled()))
        });
        let bars: Vec<_> = bars.collect();
        chart
            .draw_series(bars)?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    let names = groups.iter().enumerate().map(|(group, (name, _))| {
        let style = ("sans-serif", 14).into_font().color(&BLACK);
        let offset = (-(4 * name.chars().count() as i32), 8);
        EmptyElement::at((group as f64 + 0.5, 0.0)) + Text::new(name.clone(), offset, style)
    });
    chart.draw_series(names.collect::<Vec<_>>())?;
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{EvalRow, MetricRow};

    fn rows(steps: u64) -> Vec<Row> {
        let step = |step: u64| {
            let loss = 4.0 / (step as f64).sqrt();
            Row::Step(MetricRow {
                step,
                tokens: step,
                loss,
                lr: 1e-3,
                grad_norm: 1.0,
                tokens_per_s: 1.0,
                ms: 1.0,
                rss_mib: 1,
                metrics: Default::default(),
            })
        };
        let mut rows: Vec<Row> = (1..=steps).map(step).collect();
        rows.push(Row::Eval(EvalRow {
            step: steps,
            tokens: steps,
            eval_loss: 0.5,
            eval_perplexity: 1.6,
            eval_bits_per_byte: Some(1.0),
            eval_tokens: 1,
            ms: 1.0,
            metrics: Default::default(),
        }));
        rows
    }

    #[test]
    fn the_curve_has_axes_a_legend_and_a_bounded_size() {
        let svg = loss_svg(&rows(20_000));
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["step", "loss (nats per token)", "training", "held out"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
    }

    #[test]
    fn bars_have_their_names_and_a_missing_value_has_none() {
        let groups = [("SFT".to_owned(), vec![Some(0.5), None]), ("DPO".to_owned(), vec![Some(0.7), Some(0.9)])];
        let svg = bars_svg(&["right", "ranked"], &groups);
        assert!(["SFT", "DPO", "right", "ranked"].iter().all(|text| svg.contains(text)), "{svg}");
        let bars = |svg: &str| svg.matches("fill=\"#1F77B4\"").count() + svg.matches("fill=\"#2CA02C\"").count();
        // Three bars, and one mark per series in the legend.
        assert_eq!(bars(&svg), 5, "{svg}");
        assert!(bars_svg(&[], &[]).contains("</svg>"));
    }

    #[test]
    fn a_run_without_rows_or_of_one_step_still_gives_a_plot() {
        assert!(loss_svg(&[]).contains("</svg>"));
        assert!(loss_svg(&rows(1)).contains("training"));
    }
}

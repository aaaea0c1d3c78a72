//! The learning rate as a pure function of the step: the factor on its highest value.
//!
//! Conventions are those of transformers' schedulers: step 0 of a warmup has factor 0, and the last step is one short of
//! the minimum. `one_cycle` is PyTorch's `OneCycleLR`, whose peak is the last step of the rise and whose minimum is the
//! last step of the run.

use std::f64::consts::PI;

use crate::recipe::ScheduleKind;

/// Shape of the fall of [`ScheduleKind::Wsd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecayShape {
    /// A straight line.
    Linear,
    /// Half a cosine wave.
    Cosine,
    /// One minus the square root of the way (Hägele et al. 2024).
    OneMinusSqrt,
}

/// What [`ScheduleKind::OneCycle`] starts from, as PyTorch has it: a 25th.
const ONE_CYCLE_START: f64 = 1.0 / 25.0;
/// What [`ScheduleKind::InverseSqrt`] takes for the length of a warmup where there is none, as transformers does.
const TIMESCALE: u64 = 10_000;

/// A learning-rate schedule over a run of known length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Course after the warmup.
    pub kind: ScheduleKind,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of the rise at the start.
    pub warmup_steps: u64,
    /// Steps of the fall at the end; only `wsd` looks at it.
    pub decay_steps: u64,
    /// Shape of that fall.
    pub decay_shape: DecayShape,
    /// Waves; only `cosine_restarts` looks at it.
    pub cycles: u64,
    /// Exponent; only `polynomial` looks at it.
    pub power: f64,
    /// Factor at the very end.
    pub minimum: f64,
}

impl Schedule {
    /// Factor on the highest learning rate in step `step`, the first being 0.
    pub fn multiplier(&self, step: u64) -> f64 {
        if self.kind == ScheduleKind::OneCycle {
            return self.one_cycle(step);
        }
        let floor = |height: f64| self.minimum + (1.0 - self.minimum) * height;
        if step < self.warmup_steps {
            let rise = step as f64 / self.warmup_steps as f64;
            return if self.kind == ScheduleKind::Wsd { floor(rise) } else { rise };
        }
        let fall = |from: u64, steps: u64| ((step - from) as f64 / steps.max(1) as f64).min(1.0);
        let way = fall(self.warmup_steps, self.steps - self.warmup_steps);
        match self.kind {
            ScheduleKind::Constant | ScheduleKind::OneCycle => 1.0,
            ScheduleKind::Linear => floor(DecayShape::Linear.height(way)),
            ScheduleKind::Cosine => floor(DecayShape::Cosine.height(way)),
            ScheduleKind::CosineRestarts if way == 1.0 => self.minimum,
            ScheduleKind::CosineRestarts => floor(DecayShape::Cosine.height((self.cycles as f64 * way).fract())),
            ScheduleKind::Polynomial => floor((1.0 - way).powf(self.power)),
            ScheduleKind::InverseSqrt => {
                let timescale = if self.warmup_steps == 0 { TIMESCALE } else { self.warmup_steps };
                (timescale as f64 / (step - self.warmup_steps + timescale) as f64).sqrt()
            }
            ScheduleKind::Wsd => {
                let start = self.steps.saturating_sub(self.decay_steps).max(self.warmup_steps);
                if step < start { 1.0 } else { floor(self.decay_shape.height(fall(start, self.steps - start))) }
            }
        }
    }
}

impl Schedule {
    /// Up to the last step of the warmup, down to the last step of the run.
    fn one_cycle(&self, step: u64) -> f64 {
        let (step, top, end) = (step as f64, self.warmup_steps as f64 - 1.0, self.steps as f64 - 1.0);
        if step < top {
            return 1.0 + (ONE_CYCLE_START - 1.0) * DecayShape::Cosine.height(step / top);
        }
        let way = if end > top { ((step - top) / (end - top)).min(1.0) } else { 0.0 };
        self.minimum + (1.0 - self.minimum) * DecayShape::Cosine.height(way)
    }
}

impl DecayShape {
    fn height(self, way: f64) -> f64 {
        match self {
            Self::Linear => 1.0 - way,
            Self::Cosine => 0.5 * (1.0 + (PI * way).cos()),
            Self::OneMinusSqrt => 1.0 - way.sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_equals_the_golden_one_at_every_step() {
        let cases = loam_testkit::schedules();
        assert!(cases.len() >= 10);
        for case in cases {
            let kind = match case.schedule.as_str() {
                "constant" => ScheduleKind::Constant,
                "linear" => ScheduleKind::Linear,
                "cosine" => ScheduleKind::Cosine,
                "wsd" => ScheduleKind::Wsd,
                "cosine_restarts" => ScheduleKind::CosineRestarts,
                "polynomial" => ScheduleKind::Polynomial,
                "inverse_sqrt" => ScheduleKind::InverseSqrt,
                "one_cycle" => ScheduleKind::OneCycle,
                other => panic!("golden schedule `{other}`"),
            };
            let decay_shape = match case.decay.as_deref() {
                None | Some("linear") => DecayShape::Linear,
                Some("cosine") => DecayShape::Cosine,
                Some("1-sqrt") => DecayShape::OneMinusSqrt,
                Some(other) => panic!("golden decay `{other}`"),
            };
            let schedule = Schedule {
                kind,
                steps: case.steps as u64,
                warmup_steps: case.warmup_steps as u64,
                decay_steps: case.decay_steps.unwrap_or(0) as u64,
                decay_shape,
                cycles: case.cycles.unwrap_or(0) as u64,
                power: case.power.unwrap_or(0.0),
                minimum: case.minimum,
            };
            for (step, &expected) in case.multipliers.iter().enumerate() {
                let found = schedule.multiplier(step as u64);
                assert!((found - expected).abs() < 1e-12, "{schedule:?} step {step}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn no_run_is_too_short_for_a_schedule() {
        use ScheduleKind::{Constant, Cosine, CosineRestarts, InverseSqrt, Linear, OneCycle, Polynomial, Wsd};
        for kind in [Constant, Linear, Cosine, Wsd, CosineRestarts, Polynomial, InverseSqrt, OneCycle] {
            for (steps, warmup_steps) in [(3, 3), (1, 0), (1, 1), (2, 1)] {
                let decay_shape = DecayShape::Linear;
                let (decay_steps, cycles, power, minimum) = (0, 2, 2.0, 0.1);
                let schedule = Schedule { kind, steps, warmup_steps, decay_steps, decay_shape, cycles, power, minimum };
                let in_range = |step| (0.0..=1.0).contains(&schedule.multiplier(step));
                assert!((0..=4).all(in_range), "{schedule:?}");
            }
        }
    }
}

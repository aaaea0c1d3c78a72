//! The learning rate as a pure function of the step: the factor on its highest value.
//!
//! Conventions are those of transformers' schedulers: step 0 of a warmup has factor 0, and the last step is one short of
//! the minimum.

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
    /// Factor at the very end.
    pub minimum: f64,
}

impl Schedule {
    /// Factor on the highest learning rate in step `step`, the first being 0.
    pub fn multiplier(&self, step: u64) -> f64 {
        let floor = |height: f64| self.minimum + (1.0 - self.minimum) * height;
        if step < self.warmup_steps {
            let rise = step as f64 / self.warmup_steps as f64;
            return if self.kind == ScheduleKind::Wsd { floor(rise) } else { rise };
        }
        let fall = |from: u64, steps: u64| ((step - from) as f64 / steps.max(1) as f64).min(1.0);
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => floor(1.0 - fall(self.warmup_steps, self.steps - self.warmup_steps)),
            ScheduleKind::Cosine => {
                let way = fall(self.warmup_steps, self.steps - self.warmup_steps);
                floor(DecayShape::Cosine.height(way))
            }
            ScheduleKind::Wsd => {
                let start = self.steps.saturating_sub(self.decay_steps).max(self.warmup_steps);
                if step < start { 1.0 } else { floor(self.decay_shape.height(fall(start, self.steps - start))) }
            }
        }
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
                minimum: case.minimum,
            };
            for (step, &expected) in case.multipliers.iter().enumerate() {
                let found = schedule.multiplier(step as u64);
                assert!((found - expected).abs() < 1e-12, "{schedule:?} step {step}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn a_run_that_is_all_warmup_never_divides_by_zero() {
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            steps: 3,
            warmup_steps: 3,
            decay_steps: 0,
            decay_shape: DecayShape::Linear,
            minimum: 0.1,
        };
        assert!((0..=4).all(|step| schedule.multiplier(step).is_finite()));
    }
}

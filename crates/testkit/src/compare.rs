//! Comparisons that say where two tensors differ, and how much difference is rounding.

/// Largest allowed absolute difference of a logit from the golden one.
///
/// The golden models' logits reach about 6, where neighbouring f32 values are 5e-7 apart. PyTorch itself is up to 2.5e-6
/// away from the exact (f64) result, since every dot product rounds in some order; ours rounds in another. Eight times
/// that leaves room for other summation orders, while any real mistake (a swapped head, a missing epsilon) is
/// thousands of times larger.
pub const LOGITS_TOLERANCE: f32 = 2e-5;

/// Largest allowed difference of a gradient, as a fraction of the largest gradient of the same tensor.
///
/// Gradients go through every layer twice and sum over all tokens, and single elements cancel to almost zero, so the
/// tensor's scale is the yardstick. PyTorch's own rounding against f64 is up to 1.6e-6 on the golden models.
pub const GRADIENT_TOLERANCE: f32 = 1e-4;

/// Panics unless every element of `actual` is within `max_abs` of `expected`; says the worst index and both values.
///
/// A NaN on either side is a difference, and so is an infinity, unless both sides hold the same one.
#[track_caller]
pub fn assert_close(name: &str, actual: &[f32], expected: &[f32], max_abs: f32) {
    let (index, difference) = worst(name, actual, expected);
    assert!(
        difference <= max_abs,
        "{name}: element {index} of {} is {}, expected {}: differs by {difference:e}, allowed {max_abs:e}",
        expected.len(),
        actual[index],
        expected[index]
    );
}

/// Panics unless every element is within `relative` times the largest absolute value of `expected`.
///
/// Where `expected` is all zeros, `actual` must be too.
#[track_caller]
pub fn assert_close_relative(name: &str, actual: &[f32], expected: &[f32], relative: f32) {
    let (index, difference) = worst(name, actual, expected);
    let scale = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    assert!(
        difference <= relative * scale,
        "{name}: element {index} of {} is {}, expected {}: differs by {difference:e}, which is {:e} of the largest \
         value {scale:e}; allowed {relative:e}",
        expected.len(),
        actual[index],
        expected[index],
        difference / scale
    );
}

/// The index and size of the largest difference; a NaN counts as infinitely different.
#[track_caller]
fn worst(name: &str, actual: &[f32], expected: &[f32]) -> (usize, f32) {
    assert_eq!(actual.len(), expected.len(), "{name}: number of elements (left: actual, right: expected)");
    assert!(!expected.is_empty(), "{name}: nothing to compare");
    let mut worst = (0, 0.0);
    for (index, (&left, &right)) in actual.iter().zip(expected).enumerate() {
        // Equal infinities would subtract to NaN.
        let difference = if left == right { 0.0 } else { (left - right).abs() };
        let difference = if difference.is_nan() { f32::INFINITY } else { difference };
        if difference > worst.1 {
            worst = (index, difference);
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_pass_even_when_infinite() {
        assert_close("x", &[1.0, f32::NEG_INFINITY], &[1.0, f32::NEG_INFINITY], 0.0);
        assert_close_relative("x", &[0.0, 0.0], &[0.0, 0.0], 1e-6);
    }

    #[test]
    #[should_panic(expected = "element 1 of 3 is 2.5, expected 2")]
    fn the_worst_element_is_named_with_both_values() {
        assert_close("x", &[1.1, 2.5, 3.0], &[1.0, 2.0, 3.0], 0.2);
    }

    #[test]
    #[should_panic(expected = "element 0 of 1 is NaN")]
    fn a_nan_is_never_close() {
        assert_close("x", &[f32::NAN], &[1.0], 1e9);
    }

    #[test]
    #[should_panic(expected = "number of elements")]
    fn different_lengths_are_refused() {
        assert_close("x", &[1.0], &[1.0, 2.0], 1.0);
    }

    #[test]
    #[should_panic(expected = "nothing to compare")]
    fn two_empty_slices_prove_nothing_and_are_refused() {
        assert_close("x", &[], &[], 1.0);
    }

    #[test]
    fn relative_closeness_is_measured_on_the_largest_expected_value() {
        assert_close_relative("x", &[0.05, 100.0], &[0.0, 100.0], 1e-3);
    }

    #[test]
    #[should_panic(expected = "allowed 1e-4")]
    fn a_relative_difference_beyond_the_limit_is_refused() {
        assert_close_relative("x", &[0.05, 100.0], &[0.0, 100.0], 1e-4);
    }

    #[test]
    #[should_panic(expected = "element 0 of 1")]
    fn expected_zeros_allow_nothing_else() {
        assert_close_relative("x", &[1e-9], &[0.0], 1e-4);
    }
}

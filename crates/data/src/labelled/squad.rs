//! How well a short answer matches the right ones: exact match and F1 of SQuAD (Rajpurkar et al., 2016).

use std::collections::HashMap;

/// Lower case, without ASCII punctuation, articles and repeated spaces.
pub fn normalize(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let plain: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words = plain.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}

/// 1 if the normalised answer is one of the right ones, else 0.
pub fn exact_match<S: AsRef<str>>(prediction: &str, answers: &[S]) -> f64 {
    let prediction = normalize(prediction);
    let matches = |answer: &S| normalize(answer.as_ref()) == prediction;
    f64::from(u8::from(if answers.is_empty() { prediction.is_empty() } else { answers.iter().any(matches) }))
}

/// The largest overlap of words with one of the right answers. No answer at all is right where there is none to give.
///
/// Words are separated by spaces, as in SQuAD; a Chinese character is a word, as in its Chinese successors.
pub fn f1<S: AsRef<str>>(prediction: &str, answers: &[S]) -> f64 {
    let predicted = words(prediction);
    if answers.is_empty() {
        return f64::from(u8::from(predicted.is_empty()));
    }
    answers.iter().map(|answer| overlap(&predicted, &words(answer.as_ref()))).fold(0.0, f64::max)
}

fn overlap(predicted: &[String], answer: &[String]) -> f64 {
    if predicted.is_empty() || answer.is_empty() {
        return f64::from(u8::from(predicted.is_empty() && answer.is_empty()));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in answer {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in predicted {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    2.0 * f64::from(common) / (predicted.len() + answer.len()) as f64
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in normalize(text).split_whitespace() {
        let mut rest = String::new();
        for c in word.chars() {
            if is_cjk(c) {
                words.extend((!rest.is_empty()).then(|| std::mem::take(&mut rest)));
                words.push(c.to_string());
            } else {
                rest.push(c);
            }
        }
        words.extend((!rest.is_empty()).then_some(rest));
    }
    words
}

/// Chinese characters and the punctuation and full-width forms used with them.
pub(crate) fn is_cjk(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ff00}'..='\u{ffef}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_normalised_as_in_the_official_script() {
        for (answer, expected) in [
            ("The  Mill!", "mill"),
            ("an Apple, a day", "apple day"),
            ("U.S.A.", "usa"),
            ("theatre", "theatre"),
            ("A", ""),
            ("“quoted”", "“quoted”"),
            ("well-known", "wellknown"),
        ] {
            assert_eq!(normalize(answer), expected, "{answer}");
        }
    }

    #[test]
    fn exact_match_and_f1_are_those_worked_by_hand() {
        assert_eq!(exact_match("the red mill.", &["Red mill"]), 1.0);
        assert_eq!(exact_match("red", &["red mill", "Red"]), 1.0);
        assert_eq!(exact_match("red", &["red mill"]), 0.0);
        // One of two words in common with an answer of one: precision 1/2, recall 1.
        assert!((f1("red mill", &["mill"]) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(f1("mill mill", &["mill"]), 2.0 / 3.0);
        assert_eq!(f1("inn", &["mill", "red inn"]), 2.0 / 3.0);
        assert_eq!(f1("castle", &["mill"]), 0.0);
    }

    #[test]
    fn where_there_is_no_answer_only_silence_is_right() {
        assert_eq!((exact_match::<&str>("", &[]), f1::<&str>("", &[])), (1.0, 1.0));
        assert_eq!((exact_match::<&str>("mill", &[]), f1::<&str>("mill", &[])), (0.0, 0.0));
        assert_eq!(f1("", &["mill"]), 0.0);
    }

    #[test]
    fn chinese_answers_are_compared_by_character() {
        assert_eq!(f1("红磨坊", &["磨坊"]), 0.8);
        assert_eq!(exact_match("磨坊", &["磨坊"]), 1.0);
    }
}

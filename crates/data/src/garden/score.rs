//! Is a reply right? An exact check after normalisation, the same for every model.

use super::{Question, exercise::Category};

/// The words of the first sentence: lower case, no punctuation, no articles; each Chinese character is a word.
pub fn first_sentence(text: &str) -> Vec<String> {
    let line = text.trim_start().lines().next().unwrap_or("");
    let end = line.find(['.', '!', '?', '。', '！', '？']).unwrap_or(line.len());
    words(&line[..end])
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() {
            word.push(c.to_ascii_lowercase());
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            words.push(c.to_lowercase().collect());
        }
    }
    words.retain(|word| !matches!(word.as_str(), "a" | "an" | "the"));
    words
}

/// True if the reply's first sentence gives the answer and nothing else of its kind.
///
/// - Counting, copying and reversing: the sentence equals the answer.
/// - Numbers: the last number is the answer, and every other number was in the question.
/// - Everything else: the answer's words occur, and no rival's words do (unless the question itself has them).
pub fn is_right(question: &Question, reply: &str) -> bool {
    let reply = first_sentence(reply);
    let answer = words(&question.answer);
    let asked = words(&question.prompt);
    match question.category {
        Category::Count | Category::Copy | Category::Reverse => reply == answer,
        Category::Arithmetic | Category::Problem => {
            let numbers: Vec<&String> = reply.iter().filter(|word| word.bytes().all(|b| b.is_ascii_digit())).collect();
            numbers.last().is_some_and(|&last| *last == answer[0])
                && numbers.iter().all(|&number| *number == answer[0] || asked.contains(number))
        }
        Category::Fact | Category::Recall => {
            contains(&reply, &answer)
                && question
                    .rivals
                    .iter()
                    .map(|rival| words(rival))
                    .all(|rival| !contains(&reply, &rival) || contains(&asked, &rival) || contains(&answer, &rival))
        }
    }
}

fn contains(words: &[String], part: &[String]) -> bool {
    !part.is_empty() && words.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::super::world::Lang;
    use super::*;

    fn question(category: Category, prompt: &str, answer: &str, rivals: &[&str]) -> Question {
        let rivals = rivals.iter().map(|rival| rival.to_string()).collect();
        Question { prompt: prompt.into(), answer: answer.into(), category, lang: Lang::En, rivals }
    }

    #[test]
    fn a_fact_may_be_wrapped_in_a_sentence_but_not_hedged() {
        let home = question(Category::Fact, "Where does Mia live?", "mill", &["inn", "castle"]);
        for right in ["The mill.", "mill", "Mia lives in the mill.", "  the MILL! And the inn is near."] {
            assert!(is_right(&home, right), "{right}");
        }
        for wrong in ["The inn.", "", "The mill or the inn.", "Millhouse.", "I do not know.\nThe mill."] {
            assert!(!is_right(&home, wrong), "{wrong}");
        }
    }

    #[test]
    fn a_number_must_be_the_last_and_the_only_new_one() {
        let sum = question(Category::Arithmetic, "What is 3 + 4?", "7", &[]);
        for right in ["7.", "3 + 4 = 7.", "It is 7"] {
            assert!(is_right(&sum, right), "{right}");
        }
        for wrong in ["8.", "7 or 8.", "6 7", "17", "7 + 4 = 11", "seven"] {
            assert!(!is_right(&sum, wrong), "{wrong}");
        }
    }

    #[test]
    fn a_word_task_must_be_exact() {
        let task = question(Category::Reverse, "Say these words backwards: sun moon.", "moon sun", &[]);
        assert!(is_right(&task, "Moon sun."));
        assert!(!is_right(&task, "moon sun moon"));
        assert!(!is_right(&task, "sun moon"));
    }

    #[test]
    fn chinese_answers_are_compared_by_character() {
        let home = question(Category::Fact, "米娅住在哪里？", "磨坊", &["客栈"]);
        assert!(is_right(&home, "磨坊。"));
        assert!(is_right(&home, "米娅住在磨坊。"));
        assert!(!is_right(&home, "客栈。"));
        assert!(!is_right(&home, "磨。坊"));
    }
}

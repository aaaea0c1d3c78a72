//! Entities in BIO tags, and how well they are found.

use std::collections::HashSet;

/// A run of words that names one thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entity {
    /// Its kind, such as `PER`.
    pub kind: String,
    /// Its first word.
    pub start: usize,
    /// The word after its last.
    pub end: usize,
}

/// The entities of a sentence's tags (`B-PER`, `I-PER`, `O`).
///
/// As `seqeval` and `conlleval` read them: an `I-` tag with nothing of its kind before it starts an entity too.
pub fn entities<S: AsRef<str>>(tags: &[S]) -> Vec<Entity> {
    let mut found: Vec<Entity> = Vec::new();
    for (word, tag) in tags.iter().map(AsRef::as_ref).enumerate() {
        let Some((prefix, kind)) = tag.split_once('-') else { continue };
        match found.last_mut() {
            Some(last) if prefix != "B" && last.end == word && last.kind == kind => last.end = word + 1,
            _ => found.push(Entity { kind: kind.to_string(), start: word, end: word + 1 }),
        }
    }
    found
}

/// How many entities were there, were found, and were right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntityScore {
    /// Found with the right kind and borders.
    pub correct: usize,
    /// Found.
    pub predicted: usize,
    /// There.
    pub gold: usize,
}

impl EntityScore {
    /// Adds a sentence.
    pub fn add<S: AsRef<str>, T: AsRef<str>>(&mut self, gold: &[S], predicted: &[T]) {
        let gold: HashSet<Entity> = entities(gold).into_iter().collect();
        let predicted = entities(predicted);
        self.gold += gold.len();
        self.predicted += predicted.len();
        self.correct += predicted.iter().filter(|entity| gold.contains(entity)).count();
    }

    /// Share of the found entities that is right; 0 if none was found.
    pub fn precision(&self) -> f64 {
        share(self.correct, self.predicted)
    }

    /// Share of the entities that was found; 0 if there is none.
    pub fn recall(&self) -> f64 {
        share(self.correct, self.gold)
    }

    /// The harmonic mean of precision and recall.
    pub fn f1(&self) -> f64 {
        share(2 * self.correct, self.predicted + self.gold)
    }
}

fn share(part: usize, of: usize) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_seqeval_reads_them() {
        let tags = ["B-PER", "I-PER", "O", "I-LOC", "I-PER", "B-PER", "B-PER", "I-PER"];
        let found: Vec<(String, usize, usize)> =
            entities(&tags).into_iter().map(|e| (e.kind, e.start, e.end)).collect();
        let expected = [("PER", 0, 2), ("LOC", 3, 4), ("PER", 4, 5), ("PER", 5, 6), ("PER", 6, 8)];
        assert_eq!(found, expected.map(|(kind, start, end)| (kind.to_string(), start, end)));
        assert!(entities::<&str>(&[]).is_empty());
    }

    #[test]
    fn f1_is_that_of_the_example_in_seqevals_readme() {
        // seqeval's README: f1_score of these is 0.50.
        let mut score = EntityScore::default();
        score.add(
            &["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"],
            &["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"],
        );
        score.add(&["B-PER", "I-PER", "O"], &["B-PER", "I-PER", "O"]);
        assert_eq!(score, EntityScore { correct: 1, predicted: 2, gold: 2 });
        assert_eq!((score.precision(), score.recall(), score.f1()), (0.5, 0.5, 0.5));
    }

    #[test]
    fn precision_and_recall_differ_where_too_little_is_found() {
        let mut score = EntityScore::default();
        score.add(&["B-PER", "O", "B-LOC", "B-LOC"], &["B-PER", "O", "O", "O"]);
        assert_eq!((score.precision(), score.recall(), score.f1()), (1.0, 1.0 / 3.0, 0.5));
        assert_eq!(EntityScore::default().f1(), 0.0);
    }
}

//! Stop texts: holding back what may become one, so that no part of it is ever shown.

/// Passes text on until a stop text appears.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop text.
    held: String,
    found: Option<String>,
}

impl StopMatcher {
    /// Stops at the first of `stops` that appears; with none it passes everything on at once.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new(), found: None }
    }

    /// Takes new text; returns what can be shown of all text so far. After a stop nothing is shown any more.
    pub fn push(&mut self, text: &str) -> String {
        if self.is_stopped() {
            return String::new();
        }
        self.held.push_str(text);
        let place = |stop: &String| self.held.find(stop.as_str()).map(|at| (at, stop.clone()));
        if let Some((at, stop)) = self.stops.iter().filter_map(place).min_by_key(|(at, _)| *at) {
            self.found = Some(stop);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| longest_beginning(stop, &self.held)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop text appeared.
    pub fn is_stopped(&self) -> bool {
        self.found.is_some()
    }

    /// The stop text that appeared.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// What is still held back, once no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that `stop` begins with.
fn longest_beginning(stop: &str, text: &str) -> usize {
    let fits = |&n: &usize| stop.is_char_boundary(n) && text.as_bytes().ends_with(&stop.as_bytes()[..n]);
    (1..stop.len().min(text.len() + 1)).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_testkit::Random;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let shown = pieces.iter().map(|piece| matcher.push(piece)).collect();
        let stopped = matcher.is_stopped();
        (shown, stopped, matcher.finish())
    }

    #[test]
    fn a_stop_text_across_pieces_is_never_shown_in_part() {
        let (shown, stopped, rest) = run(&["END"], &["abc E", "N", "D more"]);
        assert_eq!((shown.concat().as_str(), stopped, rest.as_str()), ("abc ", true, ""));
        assert_eq!(shown[0], "abc ");
    }

    #[test]
    fn a_false_start_is_shown_as_soon_as_it_is_known_to_be_one() {
        let (shown, stopped, _) = run(&["END"], &["E", "N", "x"]);
        assert_eq!((shown, stopped), (vec!["".into(), "".into(), "ENx".into()], false));
        let (shown, stopped, rest) = run(&["END"], &["the E"]);
        assert_eq!((shown.concat().as_str(), stopped, rest.as_str()), ("the ", false, "E"));
    }

    #[test]
    fn the_earliest_of_several_stop_texts_counts() {
        assert_eq!(run(&["world", "lo"], &["hello world"]).0, ["hel"]);
        assert_eq!(run(&["。"], &["你好", "。再见"]).0.concat(), "你好");
        assert_eq!(run(&[], &["any", "thing"]).0, ["any", "thing"]);
    }

    #[test]
    fn any_cut_of_the_text_shows_the_same() {
        let mut random = Random::new(5);
        let alphabet = ["a", "b", "é", "。"];
        for _ in 0..500 {
            let mut word = |n: usize| -> String { (0..n).map(|_| *random.pick(&alphabet)).collect() };
            let (text, stops) = (word(20), vec![word(2), word(3)]);
            let expected = stops.iter().filter_map(|s| text.find(s.as_str())).min().unwrap_or(text.len());
            let mut matcher = StopMatcher::new(&stops);
            let mut shown: String = text.chars().map(|c| matcher.push(&c.to_string())).collect();
            shown.push_str(&matcher.finish());
            assert_eq!(shown, text[..expected], "{text} with {stops:?}");
        }
    }
}

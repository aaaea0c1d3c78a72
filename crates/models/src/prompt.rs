//! Where texts lie once virtual positions stand in front of each of them.

use std::sync::Arc;

use crate::stack::Input;

/// A batch with room in front of every text: the first positions of a row, or of every document in it.
pub(crate) struct Layout {
    /// Positions per row.
    pub(crate) time: usize,
    /// For every new position what it holds: a position of the old batch or, beyond those, a virtual one.
    pub(crate) sources: Vec<u32>,
    /// For every new position where its keys come from: itself or, beyond all, a virtual one.
    pub(crate) places: Arc<[u32]>,
    /// Where the old positions are now.
    pub(crate) kept: Vec<u32>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    segments: Option<Arc<[u32]>>,
    token_types: Option<Vec<u32>>,
    batch: usize,
}

/// The document of positions at the end of a row that hold nothing.
const NOTHING: u32 = u32::MAX;

impl Layout {
    pub(crate) fn of(input: &Input<'_>, count: usize) -> Self {
        let (batch, old) = (input.batch, input.time);
        let starts = |row: usize| -> Vec<usize> {
            let segments = input.segments.as_ref().map(|segments| &segments[row * old..][..old]);
            (0..old).filter(|&at| at == 0 || segments.is_some_and(|own| own[at] != own[at - 1])).collect()
        };
        let time = old + count * (0..batch).map(|row| starts(row).len()).max().unwrap_or(1);
        let size = batch * time;
        let mut layout = Self {
            time,
            sources: Vec::with_capacity(size),
            places: Arc::new([]),
            kept: Vec::with_capacity(batch * old),
            tokens: Vec::with_capacity(size),
            positions: Vec::with_capacity(size),
            segments: None,
            token_types: input.token_types.map(|_| Vec::with_capacity(size)),
            batch,
        };
        let (mut places, mut segments) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for row in 0..batch {
            let starts = starts(row);
            for at in 0..old {
                let from = row * old + at;
                let segment = input.segments.as_ref().map_or(0, |segments| segments[from]);
                if starts.contains(&at) {
                    for virtual_place in 0..count as u32 {
                        places.push(size as u32 + virtual_place);
                        segments.push(segment);
                        layout.push(input, (batch * old) as u32 + virtual_place, virtual_place, from);
                    }
                }
                let position = input.positions.map_or(at as u32, |positions| positions[from]) + count as u32;
                layout.kept.push(layout.sources.len() as u32);
                places.push(layout.sources.len() as u32);
                segments.push(segment);
                layout.push(input, from as u32, position, from);
            }
            while layout.sources.len() < (row + 1) * time {
                places.push(layout.sources.len() as u32);
                segments.push(NOTHING);
                layout.push(input, (row * old) as u32, 0, row * old);
            }
        }
        layout.places = places.into();
        layout.segments = input.segments.is_some().then(|| segments.into());
        layout
    }

    fn push(&mut self, input: &Input<'_>, source: u32, position: u32, like: usize) {
        self.sources.push(source);
        self.positions.push(position);
        self.tokens.push(input.tokens[like]);
        if let (Some(types), Some(given)) = (&mut self.token_types, input.token_types) {
            types.push(given[like]);
        }
    }

    /// The batch as the blocks see it.
    pub(crate) fn input(&self) -> Input<'_> {
        Input {
            tokens: &self.tokens,
            batch: self.batch,
            time: self.time,
            positions: Some(&self.positions),
            segments: self.segments.clone(),
            token_types: self.token_types.as_deref(),
            ..Input::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_gets_virtual_positions_of_its_own() {
        let segments: Arc<[u32]> = vec![0, 0, 1, 0, 0, 0].into();
        let positions = [0, 1, 0, 0, 1, 2];
        let input = Input {
            segments: Some(segments),
            positions: Some(&positions),
            ..Input::rows(&[10, 11, 12, 20, 21, 22], 2)
        };
        let layout = Layout::of(&input, 2);
        assert_eq!(layout.time, 7);
        assert_eq!(layout.sources, [6, 7, 0, 1, 6, 7, 2, 6, 7, 3, 4, 5, 3, 3]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 0, 0]);
        assert_eq!(layout.kept, [2, 3, 6, 9, 10, 11]);
        assert_eq!(layout.places[..], [14, 15, 2, 3, 14, 15, 6, 14, 15, 9, 10, 11, 12, 13]);
        assert_eq!(layout.segments.unwrap()[..], [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, NOTHING, NOTHING]);
    }
}

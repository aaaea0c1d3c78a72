//! The world: who lives where, what belongs to whom. Drawn once from the seed; every part of the garden reads it, so
//! that a story, a sentence, a question and a chat never contradict each other.

use super::relations::{RELATIONS, Relation, Subject};
use super::rng::Draw;
use super::words::{COLOURS, FOODS, JOBS, KINDS, LANDMARKS, OPPOSITES, PEOPLE, PETS, PLACES, THINGS, Term};

/// The languages of the garden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// English.
    En,
    /// Chinese.
    Zh,
}

impl Term {
    /// The word in `lang`.
    pub fn say(&self, lang: Lang) -> &'static str {
        match lang {
            Lang::En => self.en,
            Lang::Zh => self.zh,
        }
    }
}

/// A person. Indices point into the word tables.
#[derive(Debug, Clone)]
pub struct Person {
    /// Both names.
    pub name: Term,
    /// Spoken of as `she`.
    pub she: bool,
    /// Place index.
    pub home: usize,
    /// Job index.
    pub job: usize,
    /// Years.
    pub age: u32,
    /// Food index.
    pub food: usize,
    /// Colour index.
    pub colour: usize,
    /// Person index; friendship goes both ways.
    pub friend: usize,
}

/// A thing.
#[derive(Debug, Clone)]
pub struct Thing {
    /// Person index.
    pub owner: usize,
    /// Colour index.
    pub colour: usize,
    /// Place index.
    pub place: usize,
}

/// An animal.
#[derive(Debug, Clone)]
pub struct Pet {
    /// Person index.
    pub owner: usize,
    /// Kind index.
    pub kind: usize,
    /// Food index.
    pub food: usize,
}

/// A building.
#[derive(Debug, Clone)]
pub struct Place {
    /// Landmark index.
    pub near: usize,
    /// Colour index of its door.
    pub door: usize,
}

/// One fact: a relation, a subject, and the one right answer.
#[derive(Debug, Clone)]
pub struct Fact {
    /// Index into [`RELATIONS`].
    pub relation: usize,
    /// Index of the subject in its table.
    pub subject: usize,
    /// The subject's word.
    pub name: Term,
    /// The answer in English and Chinese.
    pub answer: [String; 2],
}

impl Fact {
    /// The relation this fact is about.
    pub fn relation(&self) -> &'static Relation {
        &RELATIONS[self.relation]
    }

    /// The answer in `lang`.
    pub fn answer(&self, lang: Lang) -> &str {
        &self.answer[lang as usize]
    }
}

/// Everything that is true in the garden.
#[derive(Debug, Clone)]
pub struct World {
    /// People, in the order of [`PEOPLE`].
    pub people: Vec<Person>,
    /// Things, in the order of [`THINGS`].
    pub things: Vec<Thing>,
    /// Animals, in the order of [`PETS`].
    pub pets: Vec<Pet>,
    /// Buildings, in the order of [`PLACES`].
    pub places: Vec<Place>,
    /// Every fact of every relation.
    pub facts: Vec<Fact>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64) -> World {
        let mut draw = Draw::new(seed, "world", 0);
        let mut partners: Vec<usize> = (0..PEOPLE.len()).collect();
        draw.shuffle(&mut partners);
        let mut friends = vec![0; PEOPLE.len()];
        for pair in partners.chunks_exact(2) {
            friends[pair[0]] = pair[1];
            friends[pair[1]] = pair[0];
        }
        let ages = spread(&mut draw, 50, PEOPLE.len());
        let homes = spread(&mut draw, PLACES.len(), PEOPLE.len());
        let jobs = spread(&mut draw, JOBS.len(), PEOPLE.len());
        let foods = spread(&mut draw, FOODS.len(), PEOPLE.len());
        let colours = spread(&mut draw, COLOURS.len(), PEOPLE.len());
        let people = PEOPLE
            .iter()
            .enumerate()
            .map(|(i, &(name, she))| Person {
                name,
                she,
                home: homes[i],
                job: jobs[i],
                age: 21 + ages[i] as u32,
                food: foods[i],
                colour: colours[i],
                friend: friends[i],
            })
            .collect();

        let owners = spread(&mut draw, PEOPLE.len(), THINGS.len());
        let colours = spread(&mut draw, COLOURS.len(), THINGS.len());
        let kept = spread(&mut draw, PLACES.len(), THINGS.len());
        let things =
            (0..THINGS.len()).map(|i| Thing { owner: owners[i], colour: colours[i], place: kept[i] }).collect();

        let owners = spread(&mut draw, PEOPLE.len(), PETS.len());
        let kinds = spread(&mut draw, KINDS.len(), PETS.len());
        let foods = spread(&mut draw, FOODS.len(), PETS.len());
        let pets = (0..PETS.len()).map(|i| Pet { owner: owners[i], kind: kinds[i], food: foods[i] }).collect();

        let near = spread(&mut draw, LANDMARKS.len(), PLACES.len());
        let doors = spread(&mut draw, COLOURS.len(), PLACES.len());
        let places = (0..PLACES.len()).map(|i| Place { near: near[i], door: doors[i] }).collect();

        let mut world = World { people, things, pets, places, facts: Vec::new() };
        world.facts = world.list_facts();
        world
    }

    /// How many subjects a relation of this kind speaks about.
    pub fn subjects(&self, kind: Subject) -> usize {
        match kind {
            Subject::Person => self.people.len(),
            Subject::Thing => self.things.len(),
            Subject::Pet => self.pets.len(),
            Subject::Place => self.places.len(),
            Subject::Word => 2 * OPPOSITES.len(),
        }
    }

    /// The word for a subject.
    pub fn name(&self, kind: Subject, index: usize) -> Term {
        match kind {
            Subject::Person => self.people[index].name,
            Subject::Thing => THINGS[index],
            Subject::Pet => PETS[index],
            Subject::Place => PLACES[index],
            Subject::Word => opposite(index).0,
        }
    }

    /// The facts about one subject.
    pub fn about(&self, kind: Subject, index: usize) -> impl Iterator<Item = &Fact> {
        self.facts.iter().filter(move |fact| fact.relation().subject == kind && fact.subject == index)
    }

    fn list_facts(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        for (index, relation) in RELATIONS.iter().enumerate() {
            for subject in 0..self.subjects(relation.subject) {
                let name = self.name(relation.subject, subject);
                facts.push(Fact { relation: index, subject, name, answer: (relation.answer)(self, subject) });
            }
        }
        facts
    }
}

/// The two words of an opposite, `index` counting both directions.
pub fn opposite(index: usize) -> (Term, Term) {
    let (left, right) = OPPOSITES[index / 2];
    if index.is_multiple_of(2) { (left, right) } else { (right, left) }
}

/// `count` draws from `0..kinds` that use every kind about equally often.
fn spread(draw: &mut Draw, kinds: usize, count: usize) -> Vec<usize> {
    let mut out = Vec::with_capacity(count + kinds);
    while out.len() < count {
        let mut round: Vec<usize> = (0..kinds).collect();
        draw.shuffle(&mut round);
        out.extend(round);
    }
    out.truncate(count);
    out
}

//! Short stories: a plot is a row of beats, a beat a choice of sentences. Whatever a sentence says about a person, a
//! thing or an animal is true in the world; only what happens is made up.

use std::borrow::Cow;

use super::rng::Draw;
use super::template::{Piece, join, pieces};
use super::words::{COLOURS, FOODS, JOBS, KINDS, LANDMARKS, PETS, PLACES, THINGS};
use super::world::{Lang, World};

/// Who a plot needs: `{a}` is the hero and `{b}` the hero's best friend; `{t}` belongs to the hero, and so does `{p}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// Any person.
    Person,
    /// The owner of a thing.
    Thing,
    /// The owner of an animal.
    Pet,
}

struct Plot {
    lead: Lead,
    beats: &'static [&'static [&'static str]],
}

const ENGLISH: [Plot; 8] = [
    Plot {
        lead: Lead::Thing,
        beats: &[
            &[
                "One morning {a} could not find the {t}.",
                "{a} the {a.job} had lost the {t}.",
                "Where was the {t.colour} {t}? {a} did not know.",
            ],
            &[
                "{a.He} looked under the bed and behind the door of the {a.home}.",
                "{a.He} asked everyone near the {a.near}.",
                "{a.He} searched the whole {a.home}.",
            ],
            &[
                "Then {b} came by and saw the worried face.",
                "{a.He} went to {b}, who lives in the {b.home}.",
                "{b} the {b.job} heard about it and wanted to help.",
            ],
            &["\"Did you look in the {t.place}?\" asked {b}.", "\"The {t} is always in the {t.place},\" said {b}."],
            &[
                "They walked to the {t.place} together.",
                "They ran to the {t.place} by the {t.near}.",
                "Soon they opened the {t.door} door of the {t.place}.",
            ],
            &[
                "There it was, {t.colour} and shining.",
                "And there was the {t.colour} {t}!",
                "The {t} lay right there, as {t.colour} as ever.",
            ],
            &[
                "{a} laughed, and they shared some {a.food}.",
                "{a} was so glad that {a.he} cooked {a.food} for both.",
                "\"Thank you,\" said {a}, and gave {b} a bowl of {b.food}.",
            ],
        ],
    },
    Plot {
        lead: Lead::Person,
        beats: &[
            &[
                "It was a rainy day at the {a.home}.",
                "Rain fell on the {a.home}, where {a} lives.",
                "The rain did not stop, and {a} was bored.",
            ],
            &[
                "{a} wanted to see {b}, {a.his} best friend.",
                "{a} missed {b} and put on a {a.colour} scarf.",
                "{a} thought of {b}, who lives in the {b.home}.",
            ],
            &[
                "{a.He} walked along the path to the {b.home}.",
                "{a.He} went all the way to the {b.home} by the {b.near}.",
                "Soon {a.he} knocked at the {b.door} door of the {b.home}.",
            ],
            &["{b} opened and smiled.", "\"Come in!\" said {b}.", "{b} the {b.job} was at home."],
            &[
                "They cooked {b.food}, because {b} loves {b.food}.",
                "They ate {a.food}, because {a} loves {a.food}.",
                "There was a pot of {b.food} on the stove.",
            ],
            &[
                "After that they painted a picture, all in {a.colour}.",
                "They told stories until the rain was over.",
                "They sang until it was dark outside.",
            ],
            &[
                "\"See you tomorrow,\" said {a}, and went home to the {a.home}.",
                "Then {a} walked back to the {a.home}.",
                "It was a good day after all.",
            ],
        ],
    },
    Plot {
        lead: Lead::Pet,
        beats: &[
            &[
                "{p} the {p.kind} was hungry.",
                "{p} is a {p.kind}, and {p} belongs to {a}.",
                "{a} has a {p.kind} named {p}.",
            ],
            &[
                "One day {p} ran away from the {a.home}.",
                "In the morning the {a.home} was quiet, and {p} was gone.",
                "{p} saw an open door and ran out of the {a.home}.",
            ],
            &[
                "{a} called, but no {p.kind} came.",
                "{a} looked for {p} near the {a.near}.",
                "{a} asked {b} the {b.job} for help.",
            ],
            &[
                "\"How shall we call {p}?\" asked {b}. \"{p} eats {p.food},\" said {a}.",
                "\"{p} always begs for {p.food},\" said {a}.",
                "\"I have {p.food}, and {p} loves {p.food},\" said {a}.",
            ],
            &[
                "So they put a bowl of {p.food} on the steps.",
                "They left some {p.food} in the grass.",
                "{b} brought {p.food} from the {b.home}.",
            ],
            &[
                "It was not long until {p} came back.",
                "Soon two eyes looked out of the grass, and it was {p}.",
                "Then the {p.kind} came running.",
            ],
            &[
                "{a} held {p} and laughed.",
                "That night {p} slept at the feet of {a}.",
                "{p} ate everything and fell asleep.",
            ],
        ],
    },
    Plot {
        lead: Lead::Person,
        beats: &[
            &[
                "Today {a} turned {a.age}.",
                "It was the birthday of {a}, who is now {a.age} years old.",
                "There were {a.age} candles for {a}.",
            ],
            &[
                "{b} wanted to bring a gift.",
                "{b}, the best friend of {a}, had a plan.",
                "{b} had thought about it for weeks.",
            ],
            &[
                "What would a {a.job} like?",
                "What do you give to a {a.job} who has everything?",
                "{b} knew that {a} likes {a.colour} best.",
            ],
            &[
                "So {b} bought a {a.colour} scarf.",
                "So {b} painted a {a.colour} picture of the {a.home}.",
                "So {b} found a {a.colour} vase.",
            ],
            &[
                "At the {a.home} the table was full of {a.food}.",
                "{a} had made {a.food} for all the guests.",
                "They all ate {a.food}, as {a} always does.",
            ],
            &[
                "\"My favourite colour is {a.colour}!\" said {a}.",
                "{a} was very happy with it.",
                "\"You know me well,\" said {a}.",
            ],
            &["They danced by the {a.near} until night.", "They sang for a long time.", "Everyone went home late."],
        ],
    },
    Plot {
        lead: Lead::Thing,
        beats: &[
            &[
                "{a} owns a {t.colour} {t}.",
                "The {t} of {a} is {t.colour}.",
                "Everybody knows the {t.colour} {t} of {a}.",
            ],
            &[
                "It is kept in the {t.place}.",
                "{a} keeps it in the {t.place}, near the {t.near}.",
                "Most days it stays in the {t.place}.",
            ],
            &[
                "One day the wind broke the door of the {t.place}.",
                "One night there was a storm over the {t.near}.",
                "One day {b} asked for it.",
            ],
            &[
                "\"Take care of the {t},\" said {a}.",
                "\"My {t}!\" cried {a}, who is a {a.job}.",
                "{a} was afraid for the {t}.",
            ],
            &[
                "{b} carried the {t} to the {b.home}.",
                "{b} came from the {b.home} to look after it.",
                "{b} the {b.job} knew what to do.",
            ],
            &[
                "Later the {t} went back to the {t.place}.",
                "In the end it was in the {t.place} again.",
                "A day later {b} brought it back to the {t.place}.",
            ],
            &[
                "Nothing was broken, and {a} cooked {a.food}.",
                "{a} thanked {b}, and they ate {b.food}.",
                "It was still {t.colour}, and {a} was glad.",
            ],
        ],
    },
    Plot {
        lead: Lead::Person,
        beats: &[
            &[
                "{a} works as a {a.job}.",
                "{a} is a {a.job} and is {a.age} years old.",
                "The {a.job} of the town is {a}.",
            ],
            &[
                "In the morning {a.he} leaves the {a.home}.",
                "{a.His} home is the {a.home} by the {a.near}.",
                "Every day {a.he} walks from the {a.home} past the {a.near}.",
            ],
            &[
                "On the way {a.he} meets {b}.",
                "{a.He} always stops to talk with {b} the {b.job}.",
                "{b}, {a.his} best friend, works as a {b.job}.",
            ],
            &[
                "At noon {a.he} eats {a.food}.",
                "For lunch there is {a.food}, which {a.he} loves.",
                "{a.He} shares {a.food} with {b}, who would rather have {b.food}.",
            ],
            &[
                "In the evening {a.he} is tired but happy.",
                "When work is done, {a.he} sits by the {a.near}.",
                "At night {a.he} goes home to the {a.home}.",
            ],
            &[
                "The {a.door} door closes, and the day is over.",
                "{a.He} dreams of {a.colour} birds.",
                "Tomorrow will be much the same.",
            ],
        ],
    },
    Plot {
        lead: Lead::Pet,
        beats: &[
            &[
                "{p} the {p.kind} follows {a} everywhere.",
                "{a} never goes out without {p} the {p.kind}.",
                "{a} the {a.job} takes care of {p}.",
            ],
            &[
                "Today they went to the {b.home}, where {b} lives.",
                "Today they visited {b} in the {b.home}.",
                "Today they walked to the {b.home} by the {b.near}.",
            ],
            &[
                "\"Hello, {p}!\" said {b}. \"What a fine {p.kind} you are!\"",
                "{b} had {p.food} for {p}.",
                "{b} was afraid of every {p.kind}, but not of {p}.",
            ],
            &[
                "{p} ate the {p.food} and wanted more.",
                "Nothing makes {p} as happy as {p.food}.",
                "{p} looked at the {b.door} door and waited.",
            ],
            &[
                "Then {a} and {b} had {b.food} too.",
                "{b} cooked {b.food}, and {a} told a story.",
                "They talked about work, for {b} is a {b.job}.",
            ],
            &[
                "At night {a} and {p} walked home to the {a.home}.",
                "{p} slept all the way back to the {a.home}.",
                "It was late when they reached the {a.home}.",
            ],
        ],
    },
    Plot {
        lead: Lead::Person,
        beats: &[
            &["{a} and {b} are best friends.", "{a} tells every secret to {b}.", "Nobody knows {a} as well as {b}."],
            &[
                "{a} lives in the {a.home}, and {b} lives in the {b.home}.",
                "{a} is {a.age}, and {b} is {b.age}.",
                "{a} is a {a.job}, and {b} is a {b.job}.",
            ],
            &[
                "{a} likes {a.colour}, but {b} likes {b.colour}.",
                "{a} eats {a.food}, but {b} eats {b.food}.",
                "{a} wakes up early, but {b} sleeps long.",
            ],
            &[
                "One day they built a boat and wanted to paint it.",
                "One day they found an old cart and mended it.",
                "One day they wanted to cook for the whole town.",
            ],
            &[
                "\"Paint it {a.colour}!\" said {a}. \"No, {b.colour}!\" said {b}.",
                "\"We need {a.food},\" said {a}. \"No, {b.food},\" said {b}.",
                "They argued until the evening.",
            ],
            &["In the end they did both.", "Then they laughed and took turns.", "At last each of them did one half."],
            &["That is how friends are.", "And both were content.", "The people by the {a.near} still talk about it."],
        ],
    },
];

const CHINESE: [Plot; 4] = [
    Plot {
        lead: Lead::Thing,
        beats: &[
            &["一天早上，{a}找不到{t}了。", "{a}的{t}不见了。", "{t.colour}的{t}在哪里？{a}不知道。"],
            &["{a.He}在{a.home}里找了很久。", "{a.He}问了{a.near}边的每一个人。"],
            &["这时{b}来了。", "{a.He}去{b.home}找{b}。", "{b}是一名{b.job}，很想帮忙。"],
            &["“去{t.place}看看吧。”{b}说。", "“{t}不是放在{t.place}吗？”{b}问。"],
            &["他们一起走到{t.place}。", "他们跑到{t.near}旁边的{t.place}。"],
            &["{t.colour}的{t}果然在那里。", "{t}就在那里，还是{t.colour}的。"],
            &["{a}很高兴，请{b}吃{b.food}。", "{a}笑了，他们一起吃{a.food}。"],
        ],
    },
    Plot {
        lead: Lead::Person,
        beats: &[
            &["下雨了，{a}在{a.home}里很无聊。", "{a}住在{a.home}，今天没有出门。"],
            &["{a.He}想念好朋友{b}。", "{a.He}戴上{a.colour}的围巾，去看{b}。"],
            &["{b}住在{b.home}，在{b.near}旁边。", "{a.He}一直走到{b.home}。"],
            &["“请进！”{b}说。", "{b}打开门，笑了。"],
            &["他们做了{b.food}，因为{b}最喜欢吃{b.food}。", "他们吃了{a.food}，因为{a}最爱{a.food}。"],
            &["他们画了一幅{a.colour}的画。", "他们讲故事，一直讲到雨停。"],
            &["晚上，{a}回到{a.home}。", "这真是开心的一天。"],
        ],
    },
    Plot {
        lead: Lead::Pet,
        beats: &[
            &["{a}有一只{p.kind}，名叫{p}。", "{p}是一只{p.kind}，是{a}养的。"],
            &["一天，{p}从{a.home}跑了出去。", "早上，{p}不见了。"],
            &["{a}在{a.near}边找{p}。", "{a}请{b}帮忙，{b}是一名{b.job}。"],
            &["“{p}爱吃{p.food}。”{a}说。", "他们在门口放了一碗{p.food}。"],
            &["不久，{p}回来了。", "那只{p.kind}跑了回来。"],
            &["{a}抱着{p}，笑了。", "{p}吃饱了，睡着了。"],
        ],
    },
    Plot {
        lead: Lead::Person,
        beats: &[
            &["{a}是一名{a.job}。", "{a}的工作是{a.job}。"],
            &["每天早上，{a.he}离开{a.home}，走过{a.near}。", "{a.He}的家在{a.home}。"],
            &["路上，{a.he}遇见好朋友{b}。", "{a.He}和{b}是好朋友，{b}是{b.job}。"],
            &["中午，{a.he}吃{a.food}。", "{a.He}最喜欢吃{a.food}，{b}最喜欢吃{b.food}。"],
            &["{a.He}喜欢{a.colour}，{b}喜欢{b.colour}。", "工作做完了，{a.he}坐在{a.near}边。"],
            &["晚上，{a.he}回到{a.home}。", "一天就这样过去了。"],
        ],
    },
];

/// Tells one story.
pub fn tell(world: &World, lang: Lang, draw: &mut Draw) -> String {
    let sentences: Vec<String> = scenes(world, lang, draw).iter().map(|scene| join(scene)).collect();
    sentences.join(if lang == Lang::En { " " } else { "" })
}

/// The sentences of one story, in parts.
pub fn scenes(world: &World, lang: Lang, draw: &mut Draw) -> Vec<Vec<Piece<'static>>> {
    let plot = match lang {
        Lang::En => draw.pick(&ENGLISH),
        Lang::Zh => draw.pick(&CHINESE),
    };
    let (mut thing, mut pet) = (0, 0);
    let hero = match plot.lead {
        Lead::Person => draw.below(world.people.len()),
        Lead::Thing => {
            thing = draw.below(world.things.len());
            world.things[thing].owner
        }
        Lead::Pet => {
            pet = draw.below(world.pets.len());
            world.pets[pet].owner
        }
    };
    let cast = Cast { world, lang, hero, friend: world.people[hero].friend, thing, pet };
    plot.beats.iter().map(|beat| pieces(draw.wording(beat), |key| cast.value(key))).collect()
}

/// Who and what the keys of a plot stand for.
struct Cast<'w> {
    world: &'w World,
    lang: Lang,
    hero: usize,
    friend: usize,
    thing: usize,
    pet: usize,
}

impl Cast<'_> {
    fn value(&self, key: &str) -> Option<Cow<'static, str>> {
        let (who, what) = key.split_once('.').unwrap_or((key, ""));
        match who {
            "a" => self.person(self.hero, what),
            "b" => self.person(self.friend, what),
            "t" => {
                let thing = &self.world.things[self.thing];
                match what {
                    "" => Some(THINGS[self.thing].say(self.lang).into()),
                    "colour" => Some(COLOURS[thing.colour].say(self.lang).into()),
                    "place" => Some(PLACES[thing.place].say(self.lang).into()),
                    _ => self.place(thing.place, what),
                }
            }
            "p" => {
                let pet = &self.world.pets[self.pet];
                match what {
                    "" => Some(PETS[self.pet].say(self.lang).into()),
                    "kind" => Some(KINDS[pet.kind].say(self.lang).into()),
                    "food" => Some(FOODS[pet.food].say(self.lang).into()),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn person(&self, index: usize, what: &str) -> Option<Cow<'static, str>> {
        let person = &self.world.people[index];
        let word = match what {
            "" => person.name,
            "home" => PLACES[person.home],
            "job" => JOBS[person.job],
            "food" => FOODS[person.food],
            "colour" => COLOURS[person.colour],
            "age" => return Some(person.age.to_string().into()),
            "he" | "He" | "his" | "His" => return Some(self.pronoun(person.she, what).into()),
            _ => return self.place(person.home, what),
        };
        Some(word.say(self.lang).into())
    }

    fn place(&self, index: usize, what: &str) -> Option<Cow<'static, str>> {
        let place = &self.world.places[index];
        match what {
            "near" => Some(LANDMARKS[place.near].say(self.lang).into()),
            "door" => Some(COLOURS[place.door].say(self.lang).into()),
            _ => None,
        }
    }

    fn pronoun(&self, she: bool, what: &str) -> &'static str {
        match (self.lang, she, what) {
            (Lang::Zh, true, _) => "她",
            (Lang::Zh, false, _) => "他",
            (_, true, "he") => "she",
            (_, true, "He") => "She",
            (_, true, "his") => "her",
            (_, true, _) => "Her",
            (_, false, "he") => "he",
            (_, false, "He") => "He",
            (_, false, "his") => "his",
            (_, false, _) => "His",
        }
    }
}

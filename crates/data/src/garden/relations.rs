//! The relations of the world and how they are stated and asked about. `{s}` is the subject, `{o}` the answer.

use super::words::{COLOURS, FOODS, JOBS, KINDS, LANDMARKS, PLACES, Term};
use super::world::{Lang, World, opposite};

/// What a relation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// One of the people.
    Person,
    /// One of the things.
    Thing,
    /// One of the animals.
    Pet,
    /// One of the buildings.
    Place,
    /// A word that has an opposite.
    Word,
}

/// One relation: its sentences, its questions, its answer.
pub struct Relation {
    /// Name, used as the question category's second half.
    pub name: &'static str,
    /// What it speaks about.
    pub subject: Subject,
    /// The true answer for a subject, in English and Chinese.
    pub answer: fn(&World, usize) -> [String; 2],
    /// Statements in English and Chinese; no Chinese ones means that the relation is not used in Chinese.
    pub statements: [&'static [&'static str]; 2],
    /// Questions in English and Chinese.
    pub questions: [&'static [&'static str]; 2],
    /// The short reply in English and Chinese.
    pub reply: [&'static str; 2],
}

impl Relation {
    /// Statements in `lang`.
    pub fn statements(&self, lang: Lang) -> &'static [&'static str] {
        self.statements[lang as usize]
    }

    /// Questions in `lang`.
    pub fn questions(&self, lang: Lang) -> &'static [&'static str] {
        self.questions[lang as usize]
    }
}

fn both(term: Term) -> [String; 2] {
    [term.en.to_string(), term.zh.to_string()]
}

/// Every relation.
pub const RELATIONS: [Relation; 15] = [
    Relation {
        name: "home",
        subject: Subject::Person,
        answer: |w, i| both(PLACES[w.people[i].home]),
        statements: [
            &[
                "{s} lives in the {o}.",
                "The home of {s} is the {o}.",
                "Every evening {s} goes home to the {o}.",
                "{s} has a small room in the {o}.",
                "If you look for {s}, knock at the {o}.",
            ],
            &["{s}住在{o}。", "{s}的家在{o}。", "每天晚上，{s}回到{o}。", "{s}在{o}有一个小房间。"],
        ],
        questions: [
            &[
                "Where does {s} live?",
                "Where is the home of {s}?",
                "In which house does {s} live?",
                "Tell me where {s} lives.",
                "Do you know where {s} lives?",
                "What is the home of {s}?",
            ],
            &["{s}住在哪里？", "{s}的家在哪里？", "请告诉我{s}住在哪里。", "你知道{s}的家在哪儿吗？"],
        ],
        reply: ["The {o}.", "{o}。"],
    },
    Relation {
        name: "job",
        subject: Subject::Person,
        answer: |w, i| both(JOBS[w.people[i].job]),
        statements: [
            &[
                "{s} works as a {o}.",
                "{s} is a {o}.",
                "The job of {s} is {o}.",
                "By day {s} is a {o}.",
                "Everyone knows that {s} is a {o}.",
            ],
            &["{s}是一名{o}。", "{s}的工作是{o}。", "大家都知道{s}是{o}。", "{s}当{o}很多年了。"],
        ],
        questions: [
            &[
                "What is the job of {s}?",
                "What does {s} do for work?",
                "What work does {s} do?",
                "Tell me the job of {s}.",
                "Do you know what {s} does for work?",
                "Which job does {s} have?",
            ],
            &["{s}是做什么工作的？", "{s}的工作是什么？", "请告诉我{s}的工作。", "你知道{s}做什么工作吗？"],
        ],
        reply: ["A {o}.", "{o}。"],
    },
    Relation {
        name: "age",
        subject: Subject::Person,
        answer: |w, i| [w.people[i].age.to_string(), w.people[i].age.to_string()],
        statements: [
            &[
                "{s} is {o} years old.",
                "The age of {s} is {o}.",
                "{s} turned {o} this year.",
                "On the last birthday of {s} there were {o} candles.",
                "{s} has lived for {o} years.",
            ],
            &[],
        ],
        questions: [
            &[
                "How old is {s}?",
                "What is the age of {s}?",
                "Tell me how old {s} is.",
                "Tell me the age of {s}.",
                "Do you know how old {s} is?",
                "How many years old is {s}?",
            ],
            &[],
        ],
        reply: ["{o}.", ""],
    },
    Relation {
        name: "food",
        subject: Subject::Person,
        answer: |w, i| both(FOODS[w.people[i].food]),
        statements: [
            &[
                "{s} loves {o}.",
                "The favourite food of {s} is {o}.",
                "{s} likes {o} more than any other food.",
                "For dinner {s} wants {o}.",
                "{s} could eat {o} every day.",
            ],
            &["{s}最喜欢吃{o}。", "{s}最爱的食物是{o}。", "{s}每天都想吃{o}。", "晚饭时{s}总要吃{o}。"],
        ],
        questions: [
            &[
                "What is the favourite food of {s}?",
                "What does {s} love to eat?",
                "Which food does {s} like best?",
                "Tell me the favourite food of {s}.",
                "What does {s} like to eat?",
                "Do you know which food {s} likes best?",
            ],
            &["{s}最喜欢吃什么？", "{s}最爱的食物是什么？", "请告诉我{s}最喜欢吃什么。", "你知道{s}爱吃什么吗？"],
        ],
        reply: ["{o}.", "{o}。"],
    },
    Relation {
        name: "colour",
        subject: Subject::Person,
        answer: |w, i| both(COLOURS[w.people[i].colour]),
        statements: [
            &[
                "The favourite colour of {s} is {o}.",
                "{s} likes the colour {o} best.",
                "{s} paints everything {o}.",
                "Of all colours {s} chooses {o}.",
                "The colour that {s} loves is {o}.",
            ],
            &["{s}最喜欢的颜色是{o}。", "{s}喜欢{o}。", "所有颜色里，{s}最爱{o}。", "{s}总是选{o}。"],
        ],
        questions: [
            &[
                "What is the favourite colour of {s}?",
                "Which colour does {s} like best?",
                "Which colour does {s} love?",
                "Tell me the favourite colour of {s}.",
                "Do you know the favourite colour of {s}?",
                "What colour would {s} choose?",
            ],
            &["{s}最喜欢什么颜色？", "{s}最喜欢的颜色是什么？", "请告诉我{s}喜欢的颜色。", "你知道{s}爱什么颜色吗？"],
        ],
        reply: ["{o}.", "{o}。"],
    },
    Relation {
        name: "friend",
        subject: Subject::Person,
        answer: |w, i| both(w.people[w.people[i].friend].name),
        statements: [
            &[
                "{o} is the best friend of {s}.",
                "The best friend of {s} is {o}.",
                "{s} and {o} are best friends.",
                "{s} tells every secret to {o}.",
                "{s} trusts {o} more than anyone.",
            ],
            &["{s}最好的朋友是{o}。", "{s}和{o}是好朋友。", "{s}什么事都告诉{o}。", "{s}最信任{o}。"],
        ],
        questions: [
            &[
                "Who is the best friend of {s}?",
                "Which person is the best friend of {s}?",
                "Who is {s} best friends with?",
                "Tell me who the best friend of {s} is.",
                "Do you know the best friend of {s}?",
                "What is the name of {s}'s best friend?",
            ],
            &["{s}最好的朋友是谁？", "谁是{s}的好朋友？", "请告诉我{s}最好的朋友。", "你知道{s}的好朋友是谁吗？"],
        ],
        reply: ["{o}.", "{o}。"],
    },
    Relation {
        name: "thing-owner",
        subject: Subject::Thing,
        answer: |w, i| both(w.people[w.things[i].owner].name),
        statements: [
            &[
                "The {s} belongs to {o}.",
                "{o} owns the {s}.",
                "The {s} is {o}'s.",
                "The owner of the {s} is {o}.",
                "That {s} was a gift for {o}.",
            ],
            &[],
        ],
        questions: [
            &[
                "Who owns the {s}?",
                "To whom does the {s} belong?",
                "Who is the owner of the {s}?",
                "Whose {s} is it?",
                "Tell me who owns the {s}.",
                "Do you know who has the {s}?",
            ],
            &[],
        ],
        reply: ["{o}.", ""],
    },
    Relation {
        name: "thing-colour",
        subject: Subject::Thing,
        answer: |w, i| both(COLOURS[w.things[i].colour]),
        statements: [
            &[
                "The {s} is {o}.",
                "The colour of the {s} is {o}.",
                "Someone painted the {s} {o}.",
                "You can tell the {s} by its {o} colour.",
                "It is a {o} {s}.",
            ],
            &["{s}是{o}的。", "{s}的颜色是{o}。", "大家都认得那{o}的{s}。", "有人把{s}涂成了{o}。"],
        ],
        questions: [
            &[
                "What colour is the {s}?",
                "What is the colour of the {s}?",
                "Which colour does the {s} have?",
                "Tell me the colour of the {s}.",
                "Do you know the colour of the {s}?",
                "Which colour is the {s}?",
            ],
            &["{s}是什么颜色的？", "{s}的颜色是什么？", "请告诉我{s}的颜色。", "你知道{s}是什么颜色吗？"],
        ],
        reply: ["{o}.", "{o}。"],
    },
    Relation {
        name: "thing-place",
        subject: Subject::Thing,
        answer: |w, i| both(PLACES[w.things[i].place]),
        statements: [
            &[
                "The {s} is kept in the {o}.",
                "You will find the {s} in the {o}.",
                "The place of the {s} is the {o}.",
                "The {s} is always in the {o}.",
                "Look for the {s} in the {o}.",
            ],
            &[],
        ],
        questions: [
            &[
                "Where is the {s}?",
                "Where is the {s} kept?",
                "Where can I find the {s}?",
                "Tell me where the {s} is.",
                "Do you know where the {s} is kept?",
                "In which building is the {s}?",
            ],
            &[],
        ],
        reply: ["The {o}.", ""],
    },
    Relation {
        name: "pet-kind",
        subject: Subject::Pet,
        answer: |w, i| both(KINDS[w.pets[i].kind]),
        statements: [
            &[
                "{s} is a {o}.",
                "The {o} is called {s}.",
                "Everyone knows {s} the {o}.",
                "{s} is the name of a {o}.",
                "There is a {o} named {s}.",
            ],
            &["{s}是一只{o}。", "那只{o}叫{s}。", "有一只{o}名叫{s}。", "大家都认识{o}{s}。"],
        ],
        questions: [
            &[
                "What kind of animal is {s}?",
                "What animal is {s}?",
                "Which animal is {s}?",
                "Tell me what kind of animal {s} is.",
                "Do you know what animal {s} is?",
                "{s} is what kind of animal?",
            ],
            &["{s}是什么动物？", "{s}是哪种动物？", "请告诉我{s}是什么动物。", "你知道{s}是哪种动物吗？"],
        ],
        reply: ["A {o}.", "{o}。"],
    },
    Relation {
        name: "pet-owner",
        subject: Subject::Pet,
        answer: |w, i| both(w.people[w.pets[i].owner].name),
        statements: [
            &[
                "{s} belongs to {o}.",
                "{o} takes care of {s}.",
                "The owner of {s} is {o}.",
                "{s} follows {o} everywhere.",
                "{s} sleeps at the feet of {o}.",
            ],
            &[],
        ],
        questions: [
            &[
                "Who is the owner of {s}?",
                "Who takes care of {s}?",
                "To whom does {s} belong?",
                "Whom does {s} follow everywhere?",
                "Tell me who owns {s}.",
                "Do you know who takes care of {s}?",
            ],
            &[],
        ],
        reply: ["{o}.", ""],
    },
    Relation {
        name: "pet-food",
        subject: Subject::Pet,
        answer: |w, i| both(FOODS[w.pets[i].food]),
        statements: [
            &[
                "{s} eats {o}.",
                "{s} always begs for {o}.",
                "The bowl of {s} is full of {o}.",
                "{s} gets {o} every morning.",
                "Nothing makes {s} as happy as {o}.",
            ],
            &[],
        ],
        questions: [
            &[
                "What does {s} eat?",
                "What is in the bowl of {s}?",
                "What does {s} get every morning?",
                "Tell me what {s} eats.",
                "Do you know what {s} eats?",
                "Which food makes {s} happy?",
            ],
            &[],
        ],
        reply: ["{o}.", ""],
    },
    Relation {
        name: "place-near",
        subject: Subject::Place,
        answer: |w, i| both(LANDMARKS[w.places[i].near]),
        statements: [
            &[
                "The {s} stands by the {o}.",
                "The {s} is near the {o}.",
                "From the {s} you can see the {o}.",
                "The path from the {s} leads to the {o}.",
                "Next to the {s} is the {o}.",
            ],
            &["{s}在{o}旁边。", "{s}离{o}很近。", "从{s}可以看见{o}。", "{s}旁边就是{o}。"],
        ],
        questions: [
            &[
                "What is near the {s}?",
                "What can you see from the {s}?",
                "What is next to the {s}?",
                "Tell me what is near the {s}.",
                "Do you know what is next to the {s}?",
                "Where does the path from the {s} lead?",
            ],
            &["{s}旁边是什么？", "{s}离什么很近？", "请告诉我{s}旁边有什么。", "从{s}可以看见什么？"],
        ],
        reply: ["The {o}.", "{o}。"],
    },
    Relation {
        name: "place-door",
        subject: Subject::Place,
        answer: |w, i| both(COLOURS[w.places[i].door]),
        statements: [
            &[
                "The door of the {s} is {o}.",
                "The {s} has a {o} door.",
                "You enter the {s} through a {o} door.",
                "The colour of the {s} door is {o}.",
                "A {o} door leads into the {s}.",
            ],
            &[],
        ],
        questions: [
            &[
                "What colour is the door of the {s}?",
                "Which colour is the door of the {s}?",
                "What is the colour of the {s} door?",
                "Tell me the colour of the {s} door.",
                "Do you know the colour of the {s} door?",
                "Which colour does the door of the {s} have?",
            ],
            &[],
        ],
        reply: ["{o}.", ""],
    },
    Relation {
        name: "opposite",
        subject: Subject::Word,
        answer: |_, i| both(opposite(i).1),
        statements: [
            &[
                "The opposite of {s} is {o}.",
                "{s} is the opposite of {o}.",
                "What is not {s} is {o}.",
                "{s} and {o} are opposites.",
            ],
            &["{s}的反义词是{o}。", "{s}和{o}意思相反。", "{s}反过来是{o}。"],
        ],
        questions: [
            &[
                "What is the opposite of {s}?",
                "Which word is the opposite of {s}?",
                "Tell me the opposite of {s}.",
                "Do you know the opposite of {s}?",
                "Say the opposite of {s}.",
            ],
            &["{s}的反义词是什么？", "请告诉我{s}的反义词。", "和{s}意思相反的词是什么？", "你知道{s}的反义词吗？"],
        ],
        reply: ["{o}.", "{o}。"],
    },
];

//! Chat templates, against texts that the Python library renders from the same templates (`templates.json`).
#![allow(clippy::unwrap_used, reason = "a failing helper of a test may panic")]

mod common;

use common::prose;
use loam_chat::Message;
use loam_tokenizer::{ChatTemplate, Error, Special, Tokenizer, TrainConfig, encode_chat, train};
use serde_json::Value;

fn goldens() -> Value {
    serde_json::from_str(include_str!("templates.json")).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap()
}

fn conversation() -> Vec<Message> {
    vec![
        Message::system("Be kind."),
        Message::user("Hello?"),
        Message::assistant("Hi!\nHow are you?  "),
        Message::user("Fine, thanks. Hi!"),
        Message::assistant(""),
        Message::user("Bye"),
        Message::assistant("Bye"),
    ]
}

fn trained() -> Tokenizer {
    let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
    train([Ok::<_, Error>(prose(1, 500))], &config, &mut |_| {}).unwrap()
}

#[test]
fn every_template_renders_as_in_python() {
    let goldens = goldens();
    for case in goldens["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = template(goldens["templates"][name].as_str().unwrap());
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let tools: Vec<Value> = serde_json::from_value(case["tools"].clone()).unwrap();
        let rendered = template.render(&messages, &tools, case["add_generation_prompt"].as_bool().unwrap());
        match case["error"].as_str() {
            Some(error) => assert!(rendered.unwrap_err().to_string().contains(error)),
            None => assert_eq!(rendered.unwrap(), case["text"].as_str().unwrap(), "{name}"),
        }
    }
}

#[test]
fn the_built_in_template_is_chatml() {
    let text = ChatTemplate::chatml().render(&[Message::user("hi")], &[], true).unwrap();
    assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(ChatTemplate::chatml().source(), goldens()["templates"]["chatml"].as_str().unwrap());
}

#[test]
fn spans_are_the_assistant_s_words_with_the_token_that_ends_them() {
    let spans = |template: &ChatTemplate| {
        let (text, spans) = template.render_spans(&conversation(), &[]).unwrap();
        spans.into_iter().map(|span| text[span].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(spans(&ChatTemplate::chatml()), ["Hi!\nHow are you?  <|im_end|>", "<|im_end|>", "Bye<|im_end|>"]);
    // Without the number of messages, which changes as the conversation grows.
    let blocks = goldens()["templates"]["blocks"].as_str().unwrap().replace("{{ messages | length }}", "");
    let blocks = template(&blocks);
    assert_eq!(spans(&blocks), ["Hi!\nHow are you?  </s>", "</s>", "Bye</s>"]);
    let lines = template(
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}",
    );
    // The line break is all that ends a turn here, so it is part of what a model must write.
    assert_eq!(spans(&lines), ["Hi!\nHow are you?\n", "\n", "Bye\n"]);
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_refused_for_training() {
    let source = "{% for m in messages %}[{{ m.role }}]{{ m.content if loop.last else '...' }};{% endfor %}\
                  {% if add_generation_prompt %}[assistant]{% endif %}";
    let error = template(source).render_spans(&conversation(), &[]).unwrap_err();
    assert!(matches!(error, Error::UnstableTemplate { index: 2 }));
    assert!(error.hint().is_some());
}

#[test]
fn an_encoded_conversation_marks_exactly_the_assistant_s_tokens() {
    let tokenizer = trained();
    let template = ChatTemplate::chatml();
    let chat = encode_chat(&tokenizer, &template, &conversation(), &[]).unwrap();
    assert_eq!(chat.ids.len(), chat.is_assistant.len());
    let (text, _) = template.render_spans(&conversation(), &[]).unwrap();
    assert_eq!(tokenizer.decode(&chat.ids, false).unwrap(), text);
    let learned: Vec<u32> = chat.ids.iter().zip(&chat.is_assistant).filter(|(_, a)| **a).map(|(id, _)| *id).collect();
    let expected = "Hi!\nHow are you?  <|im_end|><|im_end|>Bye<|im_end|>";
    assert_eq!(tokenizer.decode(&learned, false).unwrap(), expected);
    let prompt = template.render(&conversation()[..2], &[], true).unwrap();
    let prompt = tokenizer.encode(&prompt, Special::Parse).unwrap();
    assert_eq!(chat.ids[..prompt.len()], prompt);
    assert!(chat.is_assistant[prompt.len()] && !chat.is_assistant[prompt.len() - 1]);
}

#[test]
fn a_template_with_a_mistake_is_refused_with_its_line() {
    let broken = ChatTemplate::new("{{ a }}\n{% for %}", None, None).unwrap_err().to_string();
    assert!(broken.contains("chat template: ") && broken.contains("line 2"), "{broken}");
    let unknown = template("\n\n{{ nosuch() }}").render(&[], &[], false).unwrap_err().to_string();
    assert!(unknown.contains("line 3"), "{unknown}");
    let endless = template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    assert!(endless.render(&[], &[], false).is_err());
}

#[test]
fn the_date_can_be_printed() {
    let text = template("{{ strftime_now('%Y-%m-%d') }}").render(&[], &[], false).unwrap();
    assert!(text.len() == 10 && text.starts_with("20"), "{text}");
}

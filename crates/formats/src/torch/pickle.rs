//! An interpreter of pickles that builds values and does nothing else.
//!
//! A pickle is a program for a machine with a stack and a numbered memory. The values live in a heap and refer to one
//! another by number: what is nested without end, or contains itself, costs neither recursion nor a leak. Every
//! instruction consumes a byte and makes at most one value, of which there is a limit.

use super::globals::{self, Global};
use super::tensor::{Storage, Tensor};
use super::{Problem, damaged};
use std::collections::HashMap;

/// The most values that a file may build: a tensor takes about ten, so that is hundreds of thousands of tensors.
const MAX_VALUES: usize = 4 << 20;
/// The most arguments that a known function takes.
const MAX_ARGUMENTS: usize = 16;
/// The newest protocol of Python.
const MAX_PROTOCOL: u8 = 5;

/// Number of a value in the heap.
pub(super) type Id = u32;

/// A value. Texts are parts of the program.
#[derive(Debug)]
pub(super) enum Node<'a> {
    Int(i64),
    Text(&'a str),
    /// A tuple, a list or a set.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<Storage<'a>>),
    Tensor(Box<Tensor<'a>>),
    /// A value that weights have no use for, by its kind.
    Other(&'static str),
}

impl Node<'_> {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::Sequence(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Other(kind) => kind,
        }
    }
}

/// All values that a program has built.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    nodes: Vec<Node<'a>>,
    spent: usize,
}

impl<'a> Heap<'a> {
    pub(super) fn add(&mut self, node: Node<'a>) -> Result<Id, Problem> {
        self.spend(1)?;
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as Id)
    }

    /// Counts what is about to be built: a copy of something large takes few bytes of a program.
    pub(super) fn spend(&mut self, values: usize) -> Result<(), Problem> {
        self.spent = self.spent.saturating_add(values);
        if self.spent > MAX_VALUES { too_many() } else { Ok(()) }
    }

    pub(super) fn get(&self, id: Id) -> &Node<'a> {
        &self.nodes[id as usize]
    }
}

fn too_many<T>() -> Result<T, Problem> {
    damaged(format!("its pickle builds more than {MAX_VALUES} values, which no checkpoint needs"))
}

/// Runs a program: the heap, and the value that it ends with.
pub(super) fn run(program: &[u8]) -> Result<(Heap<'_>, Id), Problem> {
    let mut machine =
        Machine { program, at: 0, heap: Heap::default(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        if let Some(root) = machine.step()? {
            return Ok((machine.heap, root));
        }
    }
}

struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    heap: Heap<'a>,
    stack: Vec<Id>,
    /// Heights of the stack at which groups of items begin.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one instruction; gives the result of the program at its end.
    fn step(&mut self) -> Result<Option<Id>, Problem> {
        if self.stack.len().max(self.marks.len()).max(self.memo.len()) > MAX_VALUES {
            return too_many();
        }
        let start = self.at;
        let code = self.take(1)?[0];
        match code {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            // A frame is a hint to readers of streams.
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.discard()?,
            b'1' => drop(self.items()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::Other("None"))?,
            0x88 | 0x89 => self.push(Node::Other("a truth value"))?,
            b'J' | b'K' | b'M' | 0x8a | 0x8b => self.integer(code)?,
            b'G' => {
                self.take(8)?;
                self.push(Node::Other("a number"))?;
            }
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.text(code)?,
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = if code == b'B' {
                    4
                } else if code == b'C' {
                    1
                } else {
                    8
                };
                self.counted(width)?;
                self.push(Node::Other("bytes"))?;
            }
            b')' | b']' | 0x8f => self.push(Node::Sequence(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b't' | b'l' | 0x91 => {
                let items = self.items()?;
                self.push(Node::Sequence(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(code - 0x84))?;
                self.push(Node::Sequence(items))?;
            }
            b'd' => {
                let items = self.items()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set_items(&items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.items()?;
                self.append(&items)?;
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(&pair)?;
            }
            b'u' => {
                let items = self.items()?;
                self.set_items(&items)?;
            }
            b'q' | b'r' | 0x94 => self.memorise(code)?,
            b'h' | b'j' => self.recall(code)?,
            b'c' | b'i' | 0x93 => self.global(code)?,
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                let storage = globals::storage(&self.heap, id)?;
                self.push(Node::Storage(Box::new(storage)))?;
            }
            0x82..=0x84 => return Err(Problem::Calls("copyreg's extension registry".into())),
            _ => {
                return damaged(format!(
                    "byte {start} of its pickle, {code:#04x}, is no instruction that torch.save writes"
                ));
            }
        }
        Ok(None)
    }

    /// The next bytes of the program.
    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        match self.at.checked_add(count).and_then(|end| self.program.get(self.at..end)) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => damaged(format!("its pickle ends at byte {}, in the middle of an instruction", self.program.len())),
        }
    }

    /// A length of `width` bytes.
    fn count(&mut self, width: usize) -> Result<u64, Problem> {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// As many bytes as a length of `width` bytes says.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], Problem> {
        let count = self.count(width)?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), Problem> {
        let id = self.heap.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    /// Values below the newest mark cannot be reached before it is gone.
    fn top(&self) -> Result<Id, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.get(floor..) {
            Some([.., top]) => Ok(*top),
            _ => damaged("its pickle takes a value from an empty stack"),
        }
    }

    fn pop(&mut self) -> Result<Id, Problem> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, Problem> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    /// Removes the newest mark or, if something lies above it, the value on top.
    fn discard(&mut self) -> Result<(), Problem> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    /// Everything above the newest mark, which is removed.
    fn items(&mut self) -> Result<Vec<Id>, Problem> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => damaged("its pickle ends a group that was not begun"),
        }
    }

    fn protocol(&mut self) -> Result<(), Problem> {
        let version = self.take(1)?[0];
        if version > MAX_PROTOCOL {
            return Err(Problem::Unsupported(format!(
                "its pickle is of protocol {version}; known are 2 to {MAX_PROTOCOL}"
            )));
        }
        Ok(())
    }

    fn integer(&mut self, code: u8) -> Result<(), Problem> {
        let (bytes, signed) = match code {
            b'K' => (self.take(1)?, false),
            b'M' => (self.take(2)?, false),
            b'J' => (self.take(4)?, true),
            0x8a => (self.counted(1)?, true),
            _ => (self.counted(4)?, true),
        };
        if bytes.len() > 8 {
            return self.push(Node::Other("a number beyond 64 bits"));
        }
        let negative = signed && bytes.last().is_some_and(|high| high & 0x80 != 0);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, code: u8) -> Result<(), Problem> {
        let width = match code {
            0x8c | b'U' => 1,
            0x8d => 8,
            _ => 4,
        };
        let bytes = self.counted(width)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Node::Text(text)),
            // The byte strings of Python 2 need not be text.
            Err(_) if matches!(code, b'U' | b'T') => self.push(Node::Other("bytes")),
            Err(_) => damaged("a text of its pickle is not UTF-8"),
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Problem> {
        let target = self.top()?;
        match &mut self.heap.nodes[target as usize] {
            Node::Sequence(list) => list.extend_from_slice(items),
            // A set is made by calling `set`, and its content is of no use.
            Node::Other(_) => {}
            other => return damaged(format!("its pickle appends to {}", other.kind())),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Problem> {
        let target = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.heap.nodes[target as usize] {
            Node::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Node::Dict(_) => return damaged("its pickle gives a dictionary a key without a value"),
            other => return damaged(format!("its pickle sets items of {}", other.kind())),
        }
        Ok(())
    }

    fn memorise(&mut self, code: u8) -> Result<(), Problem> {
        let place = match code {
            b'q' => self.count(1)?,
            b'r' => self.count(4)?,
            _ => self.memo.len() as u64,
        };
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, code: u8) -> Result<(), Problem> {
        let place = self.count(if code == b'h' { 1 } else { 4 })?;
        match self.memo.get(&place) {
            Some(&id) => self.stack.push(id),
            None => return damaged(format!("its pickle asks for value {place}, which it never stored")),
        }
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, Problem> {
        let rest = &self.program[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).or_else(|_| damaged("a name in its pickle is not UTF-8"))
    }

    /// Names a class or a function: this is where a file that would do something else than build tensors is refused.
    fn global(&mut self, code: u8) -> Result<(), Problem> {
        let (module, name) = if code == 0x93 {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.heap.get(module), self.heap.get(name)) {
                (&Node::Text(module), &Node::Text(name)) => (module, name),
                _ => return damaged("its pickle names a function by something that is no text"),
            }
        } else {
            (self.line()?, self.line()?)
        };
        let global = Global::find(module, name)?;
        if code == b'i' {
            return damaged(format!("its pickle makes {module}.{name} in a way that torch.save never does"));
        }
        self.push(Node::Global(global))
    }

    fn call(&mut self) -> Result<(), Problem> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (&Node::Global(global), Node::Sequence(arguments)) = (self.heap.get(function), self.heap.get(arguments))
        else {
            return damaged(format!("its pickle calls {}", self.heap.get(function).kind()));
        };
        if arguments.len() > MAX_ARGUMENTS {
            return damaged(format!("its pickle calls a function with {} arguments", arguments.len()));
        }
        let arguments = arguments.clone();
        let result = global.call(&mut self.heap, &arguments)?;
        self.stack.push(result);
        Ok(())
    }

    /// Attributes of an object, such as the `_metadata` of a state dict: of no use.
    fn build(&mut self) -> Result<(), Problem> {
        self.pop()?;
        match self.heap.get(self.top()?) {
            Node::Dict(_) | Node::Tensor(_) | Node::Other(_) => Ok(()),
            other => damaged(format!("its pickle sets attributes of {}", other.kind())),
        }
    }
}

//! fail2ban's server speaks Python pickles over its socket. This writes its requests and reads
//! its answers as plain data; nothing that a pickle asks to be called is called.
//!
//! Source: CPython `Lib/pickletools.py`, protocols 0 to 5, the opcodes that data needs.

/// A Python value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(std::rc::Rc<str>),
    /// List, tuple or set.
    List(Vec<Value>),
    /// Pairs in order.
    Dict(Vec<(Value, Value)>),
    /// An object, with the arguments that it would have been made from.
    Object(Vec<Value>),
}

impl Value {
    pub fn items(&self) -> &[Value] {
        match self {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub fn int(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            Value::Bool(bit) => Some(i64::from(*bit)),
            // A float's whole seconds; as-casts saturate.
            Value::Float(number) => Some(*number as i64),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// The text, also of an object made from a text (fail2ban's IPAddr).
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            Value::Object(arguments) => arguments.iter().find_map(Value::text),
            _ => None,
        }
    }
}

/// The pickle of a list of texts (protocol 2).
pub(super) fn request(words: &[&str]) -> Vec<u8> {
    let mut out = vec![0x80, 2, b']', b'('];
    for word in words {
        out.push(b'X');
        // Words are short constants and jail names of at most 4 GiB by construction of u32.
        out.extend((word.len() as u32).to_le_bytes());
        out.extend(word.as_bytes());
    }
    out.extend(b"e.");
    out
}

/// Most values in one pickle, memo copies included.
const MAX_VALUES: usize = 4_000_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// Reads a pickle; `None` when it is damaged, too large or holds what data does not need.
pub(super) fn read(bytes: &[u8]) -> Option<Value> {
    let mut reader = Reader {
        bytes,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        values: 0,
    };
    reader.run()
}

/// A value on the stack with the depth of its nesting.
type Slot = (Value, usize);

struct Reader<'a> {
    bytes: &'a [u8],
    stack: Vec<Slot>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    values: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn number(&mut self, width: usize) -> Option<usize> {
        let mut number = 0u64;
        for (at, byte) in self.take(width)?.iter().enumerate() {
            number |= u64::from(*byte) << (8 * at);
        }
        usize::try_from(number).ok()
    }

    fn line(&mut self) -> Option<&'a str> {
        let end = self.bytes.iter().position(|b| *b == b'\n')?;
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).ok()
    }

    fn push(&mut self, value: Value) -> Option<()> {
        self.push_deep(value, 0)
    }

    fn push_deep(&mut self, value: Value, depth: usize) -> Option<()> {
        self.values += 1;
        if self.values > MAX_VALUES || depth > MAX_DEPTH {
            return None;
        }
        self.stack.push((value, depth));
        Some(())
    }

    fn text(&mut self, width: usize) -> Option<()> {
        let length = self.number(width)?;
        let bytes = self.take(length)?;
        self.push(Value::Text(String::from_utf8_lossy(bytes).into()))
    }

    /// Everything above the last mark, with the depth of a value around it.
    fn marked(&mut self) -> Option<(Vec<Value>, usize)> {
        let mark = self.marks.pop()?;
        if mark > self.stack.len() {
            return None;
        }
        Some(around(self.stack.split_off(mark)))
    }

    fn top(&mut self, count: usize) -> Option<(Vec<Value>, usize)> {
        let at = self.stack.len().checked_sub(count)?;
        Some(around(self.stack.split_off(at)))
    }

    fn list(&mut self, (items, depth): (Vec<Value>, usize)) -> Option<()> {
        self.push_deep(Value::List(items), depth)
    }

    fn append(&mut self, (items, depth): (Vec<Value>, usize)) -> Option<()> {
        let (value, own) = self.stack.last_mut()?;
        let Value::List(list) = value else {
            return None;
        };
        list.extend(items);
        *own = (*own).max(depth);
        (*own <= MAX_DEPTH).then_some(())
    }

    fn set_items(&mut self, (items, depth): (Vec<Value>, usize)) -> Option<()> {
        let (value, own) = self.stack.last_mut()?;
        let Value::Dict(pairs) = value else {
            return None;
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            pairs.push((key, items.next()?));
        }
        *own = (*own).max(depth);
        (*own <= MAX_DEPTH).then_some(())
    }

    fn remember(&mut self, at: usize) -> Option<()> {
        // Containers may still grow after they are remembered, and copying them could be made to
        // cost without end; answers refer back to texts only.
        let value = match &self.stack.last()?.0 {
            value @ (Value::Text(_) | Value::Int(_) | Value::Float(_)) => Some(value.clone()),
            _ => None,
        };
        if at > MAX_VALUES {
            return None;
        }
        if self.memo.len() <= at {
            self.memo.resize(at + 1, None);
        }
        self.memo[at] = value;
        Some(())
    }

    fn recall(&mut self, at: usize) -> Option<()> {
        let value = self.memo.get(at)?.clone();
        self.push(value.unwrap_or(Value::Object(Vec::new())))
    }

    fn run(&mut self) -> Option<Value> {
        loop {
            match self.byte()? {
                // PROTO, FRAME: nothing to do.
                0x80 => drop(self.byte()?),
                0x95 => drop(self.take(8)?),
                b'.' => return self.stack.pop().map(|(value, _)| value),
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'K' => {
                    let number = self.byte()?;
                    self.push(Value::Int(number.into()))?;
                }
                b'M' => {
                    let number = self.number(2)?;
                    self.push(Value::Int(number as i64))?;
                }
                b'J' => {
                    let bytes = self.take(4)?.try_into().ok()?;
                    self.push(Value::Int(i32::from_le_bytes(bytes).into()))?;
                }
                0x8a => {
                    let length = self.byte()?;
                    let number = long(self.take(length.into())?)?;
                    self.push(Value::Int(number))?;
                }
                b'G' => {
                    let bytes = self.take(8)?.try_into().ok()?;
                    self.push(Value::Float(f64::from_be_bytes(bytes)))?;
                }
                b'I' | b'L' => {
                    let number = self.line()?.trim_end_matches('L').parse().ok()?;
                    self.push(Value::Int(number))?;
                }
                b'X' => self.text(4)?,
                0x8c | b'U' | b'C' => self.text(1)?,
                0x8d | 0x8e => self.text(8)?,
                b'T' | b'B' => self.text(4)?,
                b']' | b')' | 0x8f => self.push(Value::List(Vec::new()))?,
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b'l' | b't' | 0x91 => {
                    let items = self.marked()?;
                    self.list(items)?;
                }
                0x85 => {
                    let items = self.top(1)?;
                    self.list(items)?;
                }
                0x86 => {
                    let items = self.top(2)?;
                    self.list(items)?;
                }
                0x87 => {
                    let items = self.top(3)?;
                    self.list(items)?;
                }
                b'a' => {
                    let item = self.top(1)?;
                    self.append(item)?;
                }
                b'e' | 0x90 => {
                    let items = self.marked()?;
                    self.append(items)?;
                }
                b's' => {
                    let pair = self.top(2)?;
                    self.set_items(pair)?;
                }
                b'u' => {
                    let pairs = self.marked()?;
                    self.set_items(pairs)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'q' => {
                    let at = self.byte()?;
                    self.remember(at.into())?;
                }
                b'r' => {
                    let at = self.number(4)?;
                    self.remember(at)?;
                }
                b'h' => {
                    let at = self.byte()?;
                    self.recall(at.into())?;
                }
                b'j' => {
                    let at = self.number(4)?;
                    self.recall(at)?;
                }
                // A class by name: an object without arguments.
                b'c' => {
                    self.line()?;
                    self.line()?;
                    self.push(Value::Object(Vec::new()))?;
                }
                0x93 => {
                    self.top(2)?;
                    self.push(Value::Object(Vec::new()))?;
                }
                // Calling it, making it: an object with the arguments.
                b'R' | 0x81 => {
                    let (mut items, depth) = self.top(2)?;
                    let arguments = match items.pop()? {
                        Value::List(arguments) => arguments,
                        _ => Vec::new(),
                    };
                    self.push_deep(Value::Object(arguments), depth)?;
                }
                // Its state, which is of no interest.
                b'b' => drop(self.top(1)?),
                b'0' => drop(self.stack.pop()?),
                _ => return None,
            }
        }
    }
}

fn around(slots: Vec<Slot>) -> (Vec<Value>, usize) {
    let depth = slots.iter().map(|(_, depth)| depth + 1).max().unwrap_or(0);
    (slots.into_iter().map(|(value, _)| value).collect(), depth)
}

/// A little-endian two's complement number of up to 8 bytes.
fn long(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut full = [if negative { 0xff } else { 0 }; 8];
    full[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    /// A pickle made by Python 3.11, and its value as Rust prints it.
    fn check(hex: &str, expected: &str) {
        let value = read(&unhex(hex)).map(|value| format!("{value:?}"));
        assert_eq!(value.as_deref(), Some(expected));
    }

    #[test]
    fn pickles_of_python() {
        // (0, 'pong')
        check(
            "8005950c000000000000004b008c04706f6e679486942e",
            r#"List([Int(0), Text("pong")])"#,
        );
        // (1, Exception('bad', 3))
        check(
            "8005952a000000000000004b018c086275696c74696e73948c09457863657074696f6e9493948c03626164944b038694529486942e",
            r#"List([Int(1), Object([Text("bad"), Int(3)])])"#,
        );
        // (0, ['a', IPAddr('1.2.3.4')])
        check(
            "8005952e000000000000004b005d94288c0161948c086275696c74696e73948c037374729493948c07312e322e332e3494859452946586942e",
            r#"List([Int(0), List([Text("a"), Object([Text("1.2.3.4")])])])"#,
        );
        // (0, -1), (0, 86400.5), (0, {'a': [1]}), (0, {'x'})
        check(
            "8005950a000000000000004b004affffffff86942e",
            "List([Int(0), Int(-1)])",
        );
        check(
            "8005950d000000000000004b004740f518080000000086942e",
            "List([Int(0), Float(86400.5)])",
        );
        check(
            "80059511000000000000004b007d948c0161945d944b01617386942e",
            r#"List([Int(0), Dict([(Text("a"), List([Int(1)]))])])"#,
        );
        check(
            "8005950d000000000000004b008f94288c0178949086942e",
            r#"List([Int(0), List([Text("x")])])"#,
        );
        // 2**40, -129 (LONG1)
        check("80028a060000000000012e", "Int(1099511627776)");
        check("80028a027fff2e", "Int(-129)");
        // ['ab', 'ab'] by reference
        check(
            "80025d285802000000616271006800652e",
            r#"List([Text("ab"), Text("ab")])"#,
        );
    }

    #[test]
    fn a_request_is_read_back() {
        let value = read(&request(&["get", "sshd", "bäntime", ""])).unwrap();
        let words: Vec<_> = value.items().iter().filter_map(Value::text).collect();
        assert_eq!(words, ["get", "sshd", "bäntime", ""]);
    }

    #[test]
    fn damaged_and_hostile_pickles_are_refused() {
        for bytes in [
            &b""[..],
            b".",
            b"(",
            b"]",
            b"e.",
            b"t.",
            b"X\xff\xff\xff\xffab",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffab",
            b"K",
            b"h\x05.",
            b"r\xff\xff\xff\xff.",
            b"\x8a\xff.",
            b"}(K\x01u.",
            b"Q.",
        ] {
            assert_eq!(read(bytes), None, "{bytes:?}");
        }
        // Deep nesting: refused before anything recurses.
        let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], b".".to_vec()].concat();
        assert_eq!(read(&deep), None);
        let deep = [b"N".to_vec(), vec![0x85; 100_000], b".".to_vec()].concat();
        assert_eq!(read(&deep), None);
        // A list in itself, and doubling by reference: no copies of containers.
        assert_eq!(
            read(b"]q\x00h\x00a."),
            Some(Value::List(vec![Value::Object(vec![])]))
        );
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let seed = unhex(
            "8005952a000000000000004b018c086275696c74696e73948c09457863657074696f6e9493948c03626164944b038694529486942e",
        );
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut bytes = seed.clone();
            for _ in 0..4 {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 56) as u8;
            }
            let _ = read(&bytes);
        }
    }
}

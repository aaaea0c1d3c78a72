//! Metadata: scalars, texts and lists with a type each.

use super::read::Cursor;

/// Lists within lists at most.
const MAX_DEPTH: usize = 4;
/// Bytes of a text at most, as in the other readers.
const MAX_TEXT: u64 = 1 << 30;

/// One value of a file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Unsigned 8-bit integer.
    U8(u8),
    /// Signed 8-bit integer.
    I8(i8),
    /// Unsigned 16-bit integer.
    U16(u16),
    /// Signed 16-bit integer.
    I16(i16),
    /// Unsigned 32-bit integer.
    U32(u32),
    /// Signed 32-bit integer.
    I32(i32),
    /// Single precision.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// A list.
    Array(GgufArray),
    /// Unsigned 64-bit integer.
    U64(u64),
    /// Signed 64-bit integer.
    I64(i64),
    /// Double precision.
    F64(f64),
}

/// A list whose elements share a type.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufArray {
    /// Unsigned 8-bit integers.
    U8(Vec<u8>),
    /// Signed 8-bit integers.
    I8(Vec<i8>),
    /// Unsigned 16-bit integers.
    U16(Vec<u16>),
    /// Signed 16-bit integers.
    I16(Vec<i16>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Signed 32-bit integers.
    I32(Vec<i32>),
    /// Single precision.
    F32(Vec<f32>),
    /// Truth values.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    Text(Vec<String>),
    /// Lists.
    Array(Vec<GgufArray>),
    /// Unsigned 64-bit integers.
    U64(Vec<u64>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// Double precision.
    F64(Vec<f64>),
}

/// What the elements of a list are read and written as.
trait Element: Sized {
    /// Fewest bytes that an element takes in a file.
    const LEAST: usize;
    fn read(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self, String>;
    fn write(&self, out: &mut Vec<u8>);
}

fn scalar<const N: usize>(cursor: &mut Cursor<'_>) -> Result<[u8; N], String> {
    let bytes = cursor.take(N)?;
    Ok(bytes.try_into().expect("as many bytes as were asked for"))
}

/// Elements that are their bytes.
macro_rules! plain_elements {
    ($($ty:ty),*) => {$(
        impl Element for $ty {
            const LEAST: usize = size_of::<$ty>();
            fn read(cursor: &mut Cursor<'_>, _: usize) -> Result<Self, String> {
                Ok(Self::from_le_bytes(scalar(cursor)?))
            }
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
plain_elements!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

impl Element for bool {
    const LEAST: usize = 1;

    fn read(cursor: &mut Cursor<'_>, _: usize) -> Result<Self, String> {
        match cursor.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("a truth value is {other}, expected 0 or 1")),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Element for String {
    const LEAST: usize = 8;

    fn read(cursor: &mut Cursor<'_>, _: usize) -> Result<Self, String> {
        cursor.text().map(str::to_owned)
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_text(self, out);
    }
}

impl Element for GgufArray {
    const LEAST: usize = 12;

    fn read(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self, String> {
        if depth >= MAX_DEPTH {
            return Err(format!("lists are nested more than {MAX_DEPTH} deep"));
        }
        let (ty, count) = (cursor.u32()?, cursor.u64()?);
        Ok(match ty {
            0 => Self::U8(elements(cursor, count, depth)?),
            1 => Self::I8(elements(cursor, count, depth)?),
            2 => Self::U16(elements(cursor, count, depth)?),
            3 => Self::I16(elements(cursor, count, depth)?),
            4 => Self::U32(elements(cursor, count, depth)?),
            5 => Self::I32(elements(cursor, count, depth)?),
            6 => Self::F32(elements(cursor, count, depth)?),
            7 => Self::Bool(elements(cursor, count, depth)?),
            8 => Self::Text(elements(cursor, count, depth)?),
            9 => Self::Array(elements(cursor, count, depth)?),
            10 => Self::U64(elements(cursor, count, depth)?),
            11 => Self::I64(elements(cursor, count, depth)?),
            12 => Self::F64(elements(cursor, count, depth)?),
            other => return Err(unknown_type(other)),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(list) => write_elements(0, list, out),
            Self::I8(list) => write_elements(1, list, out),
            Self::U16(list) => write_elements(2, list, out),
            Self::I16(list) => write_elements(3, list, out),
            Self::U32(list) => write_elements(4, list, out),
            Self::I32(list) => write_elements(5, list, out),
            Self::F32(list) => write_elements(6, list, out),
            Self::Bool(list) => write_elements(7, list, out),
            Self::Text(list) => write_elements(8, list, out),
            Self::Array(list) => write_elements(9, list, out),
            Self::U64(list) => write_elements(10, list, out),
            Self::I64(list) => write_elements(11, list, out),
            Self::F64(list) => write_elements(12, list, out),
        }
    }
}

fn unknown_type(ty: u32) -> String {
    format!("a value has the unknown type {ty}; known are 0 to 12")
}

/// Reads the elements of a list, after a look at whether the file can hold so many.
fn elements<T: Element>(cursor: &mut Cursor<'_>, count: u64, depth: usize) -> Result<Vec<T>, String> {
    let room = cursor.left() / T::LEAST;
    let count = usize::try_from(count).ok().filter(|&count| count <= room).ok_or_else(|| {
        format!("a list claims {count} elements, the {} bytes that are left hold {room} at most", cursor.left())
    })?;
    (0..count).map(|_| T::read(cursor, depth + 1)).collect()
}

fn write_elements<T: Element>(ty: u32, list: &[T], out: &mut Vec<u8>) {
    ty.write(out);
    (list.len() as u64).write(out);
    list.iter().for_each(|element| element.write(out));
}

/// Writes a text with its length before it.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    (text.len() as u64).write(out);
    out.extend_from_slice(text.as_bytes());
}

impl Cursor<'_> {
    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Element::read(self, 0)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Element::read(self, 0)
    }
}

impl<'a> Cursor<'a> {
    /// A text with its length before it.
    pub(super) fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        if length > MAX_TEXT {
            return Err(format!("a text claims {length} bytes, more than the format's {MAX_TEXT}"));
        }
        let at = self.at();
        let bytes = self.take(length as usize)?;
        std::str::from_utf8(bytes).map_err(|e| format!("the text at byte {at} is not UTF-8: {e}"))
    }
}

impl GgufValue {
    /// Reads a value and the type before it.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        Ok(match cursor.u32()? {
            0 => Self::U8(Element::read(cursor, 0)?),
            1 => Self::I8(Element::read(cursor, 0)?),
            2 => Self::U16(Element::read(cursor, 0)?),
            3 => Self::I16(Element::read(cursor, 0)?),
            4 => Self::U32(Element::read(cursor, 0)?),
            5 => Self::I32(Element::read(cursor, 0)?),
            6 => Self::F32(Element::read(cursor, 0)?),
            7 => Self::Bool(Element::read(cursor, 0)?),
            8 => Self::Text(Element::read(cursor, 0)?),
            9 => Self::Array(Element::read(cursor, 0)?),
            10 => Self::U64(Element::read(cursor, 0)?),
            11 => Self::I64(Element::read(cursor, 0)?),
            12 => Self::F64(Element::read(cursor, 0)?),
            other => return Err(unknown_type(other)),
        })
    }

    /// Writes the value with its type before it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        fn typed(ty: u32, value: &impl Element, out: &mut Vec<u8>) {
            ty.write(out);
            value.write(out);
        }
        match self {
            Self::U8(x) => typed(0, x, out),
            Self::I8(x) => typed(1, x, out),
            Self::U16(x) => typed(2, x, out),
            Self::I16(x) => typed(3, x, out),
            Self::U32(x) => typed(4, x, out),
            Self::I32(x) => typed(5, x, out),
            Self::F32(x) => typed(6, x, out),
            Self::Bool(x) => typed(7, x, out),
            Self::Text(x) => typed(8, x, out),
            Self::Array(x) => typed(9, x, out),
            Self::U64(x) => typed(10, x, out),
            Self::I64(x) => typed(11, x, out),
            Self::F64(x) => typed(12, x, out),
        }
    }

    /// A whole number that is not negative, of whatever integer type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::U64(x) => Some(x),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// A number of whatever type. One in single precision becomes the shortest decimal that means it, as its author
    /// wrote it: `1e-6`, not `9.99999997e-7`.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => x.to_string().parse().ok(),
            Self::F64(x) => Some(x),
            Self::I8(x) => Some(x.into()),
            Self::I16(x) => Some(x.into()),
            Self::I32(x) => Some(x.into()),
            Self::I64(x) => Some(x as f64),
            _ => self.as_u64().map(|x| x as f64),
        }
    }

    /// A text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A list.
    pub fn as_array(&self) -> Option<&GgufArray> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl GgufArray {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(list) => list.len(),
            Self::I8(list) => list.len(),
            Self::U16(list) => list.len(),
            Self::I16(list) => list.len(),
            Self::U32(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::F32(list) => list.len(),
            Self::Bool(list) => list.len(),
            Self::Text(list) => list.len(),
            Self::Array(list) => list.len(),
            Self::U64(list) => list.len(),
            Self::I64(list) => list.len(),
            Self::F64(list) => list.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The texts, if it is a list of texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Self::Text(list) => Some(list),
            _ => None,
        }
    }

    /// The numbers or truth values of a list of such, as f64.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        Some(match self {
            Self::U8(list) => list.iter().map(|&x| x.into()).collect(),
            Self::I8(list) => list.iter().map(|&x| x.into()).collect(),
            Self::U16(list) => list.iter().map(|&x| x.into()).collect(),
            Self::I16(list) => list.iter().map(|&x| x.into()).collect(),
            Self::U32(list) => list.iter().map(|&x| x.into()).collect(),
            Self::I32(list) => list.iter().map(|&x| x.into()).collect(),
            Self::F32(list) => list.iter().map(|&x| x.into()).collect(),
            Self::Bool(list) => list.iter().map(|&x| f64::from(u8::from(x))).collect(),
            Self::U64(list) => list.iter().map(|&x| x as f64).collect(),
            Self::I64(list) => list.iter().map(|&x| x as f64).collect(),
            Self::F64(list) => list.clone(),
            Self::Text(_) | Self::Array(_) => return None,
        })
    }

    /// The bytes of a list of 8-bit integers, signed or not.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::U8(list) => Some(list.clone()),
            Self::I8(list) => Some(list.iter().map(|&x| x.cast_unsigned()).collect()),
            _ => None,
        }
    }
}

impl From<&str> for GgufValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for GgufValue {
    fn from(number: u32) -> Self {
        Self::U32(number)
    }
}

impl From<f32> for GgufValue {
    fn from(number: f32) -> Self {
        Self::F32(number)
    }
}

impl From<bool> for GgufValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

//! Importance matrices as llama.cpp's `llama-imatrix` writes and `llama-quantize` reads them: the old binary form, and the
//! GGUF form that took its place.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use loam_formats::gguf::write_split;
use loam_formats::{Gguf, GgufArray, GgufOut, GgufValue, atomic};
use loam_models::{Importance, LanguageModel};
use loam_tensor::GgmlType;

use crate::{Error, Result};

/// What a file holds: for every tensor of a GGUF model the mean square of each input, and how many rows it is the mean of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImatrixFile {
    /// By the tensor's name in GGUF files.
    pub entries: BTreeMap<String, Vec<f32>>,
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Rows of tokens that were read.
    pub chunks: u32,
    /// Tokens of a row.
    pub chunk_size: u32,
}

/// The sums' and the counts' names in the GGUF form, behind the tensor's.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

impl ImatrixFile {
    /// From importances under the names of a model's weights.
    pub fn of(
        model: &LanguageModel,
        importance: &Importance,
        dataset: &str,
        chunks: usize,
        chunk_size: usize,
    ) -> Result<Self> {
        // Matrices that read the same have one entry; experts, which do not, have theirs one after the other.
        let entry = |(tensor, feeds): (String, Vec<String>)| {
            let known: Vec<Option<&Vec<f32>>> = feeds.iter().map(|own| importance.get(own)).collect();
            let any = known.iter().copied().flatten().next()?;
            let zeros = vec![0.0; any.len()];
            let parts: Vec<&Vec<f32>> = match are_experts(&feeds) {
                true => known.iter().map(|values| values.unwrap_or(&zeros)).collect(),
                false => vec![any],
            };
            Some((tensor, parts.into_iter().flatten().copied().collect()))
        };
        Ok(Self {
            entries: model.gguf_feeds()?.into_iter().filter_map(entry).collect(),
            datasets: vec![dataset.to_owned()],
            chunks: chunks as u32,
            chunk_size: chunk_size as u32,
        })
    }

    /// Under the names of a model's weights. Refuses a file of which no entry fits.
    pub fn importance(&self, model: &LanguageModel, path: &Path) -> Result<Importance> {
        let widths: BTreeMap<String, usize> =
            model.parameters().into_iter().map(|(name, parameter)| (name, parameter.shape().width())).collect();
        let mut found = Importance::new();
        for (tensor, feeds) in model.gguf_feeds()? {
            let Some(values) = self.entries.get(&tensor) else { continue };
            let width = widths[&feeds[0]];
            let matrices = if are_experts(&feeds) { feeds.len() } else { 1 };
            if values.len() != matrices * width {
                let problem = format!("{tensor} has {} inputs, the model {}", values.len(), matrices * width);
                return Err(Error::File { path: path.into(), problem });
            }
            for (i, own) in feeds.into_iter().enumerate() {
                found.insert(own, values[i % matrices * width..][..width].to_vec());
            }
        }
        if found.is_empty() {
            let sample = self.entries.keys().next().map_or("nothing".into(), |name| format!("`{name}` and others"));
            return Err(Error::File { path: path.into(), problem: format!("holds {sample}, nothing of this model") });
        }
        Ok(found)
    }

    /// Reads either form.
    pub fn read(path: &Path) -> Result<Self> {
        if Gguf::is_one(path) {
            return Self::from_gguf(&Gguf::open(path)?);
        }
        let bytes = fs::read(path).map_err(|e| Error::File { path: path.into(), problem: e.to_string() })?;
        Self::from_legacy(&bytes).map_err(|problem| Error::File { path: path.into(), problem })
    }

    /// Writes the GGUF form where the name ends with `.gguf`, else the old one.
    pub fn write(&self, path: &Path) -> Result<()> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return self.write_gguf(path);
        }
        Ok(atomic::write_file(path, &self.to_legacy())?)
    }

    fn write_gguf(&self, path: &Path) -> Result<()> {
        let metadata = [
            ("general.type".to_owned(), GgufValue::from("imatrix")),
            ("imatrix.datasets".to_owned(), GgufValue::Array(GgufArray::Text(self.datasets.clone()))),
            ("imatrix.chunk_count".to_owned(), self.chunks.into()),
            ("imatrix.chunk_size".to_owned(), self.chunk_size.into()),
        ];
        // Sums of squares and the number of rows they are sums over.
        let count = self.rows();
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut tensors = Vec::new();
        for (name, means) in &self.entries {
            let sums: Vec<f32> = means.iter().map(|x| x * count).collect();
            let (sums, counts) = (bytes(&sums), bytes(&[count]));
            tensors.push(GgufOut::lazy(format!("{name}{SUMS}"), GgmlType::F32, &[1, means.len()], move || {
                sums.clone().into()
            }));
            tensors
                .push(GgufOut::lazy(format!("{name}{COUNTS}"), GgmlType::F32, &[1, 1], move || counts.clone().into()));
        }
        write_split(path, &metadata, tensors, u64::MAX)?;
        Ok(())
    }

    fn rows(&self) -> f32 {
        (u64::from(self.chunks) * u64::from(self.chunk_size)).max(1) as f32
    }

    fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let refused = |problem: String| Error::File { path: gguf.path().into(), problem };
        if gguf.text("general.type")? != Some("imatrix") {
            return Err(refused("is a GGUF file, but no importance matrix".into()));
        }
        let floats = |name: &str| -> Result<Vec<f32>> {
            let tensor = gguf.get(name)?;
            if tensor.ty != GgmlType::F32 {
                return Err(refused(format!("'{name}' is {}, not F32", tensor.ty.name())));
            }
            let (bytes, _) = gguf.bytes(tensor).as_chunks::<4>();
            Ok(bytes.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let mut entries = BTreeMap::new();
        for tensor in gguf.tensors() {
            let Some(name) = tensor.name.strip_suffix(SUMS) else { continue };
            let (sums, counts) = (floats(&tensor.name)?, floats(&format!("{name}{COUNTS}"))?);
            // Several matrices (experts) share a tensor's name; ours have names of their own, so that means are all alike.
            let per_matrix = sums.len() / counts.len().max(1);
            let mean = |(i, sum): (usize, &f32)| sum / counts[(i / per_matrix.max(1)).min(counts.len() - 1)].max(1.0);
            if counts.is_empty() {
                return Err(refused(format!("'{name}{COUNTS}' is empty")));
            }
            entries.insert(name.to_owned(), sums.iter().enumerate().map(mean).collect());
        }
        let size = |key: &str| gguf.size(key).map(|n| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0));
        Ok(Self {
            entries,
            datasets: gguf.texts("imatrix.datasets")?.unwrap_or_default().to_vec(),
            chunks: size("imatrix.chunk_count")?,
            chunk_size: size("imatrix.chunk_size")?,
        })
    }

    /// i32 entries; each: i32 length and the name, i32 calls, i32 values, f32 means times calls. Then i32 chunks, i32
    /// length and the name of the text.
    fn to_legacy(&self) -> Vec<u8> {
        let calls = self.chunks.max(1) as i32;
        let mut out = Vec::new();
        let int = |out: &mut Vec<u8>, n: i32| out.extend(n.to_le_bytes());
        int(&mut out, self.entries.len() as i32);
        for (name, means) in &self.entries {
            int(&mut out, name.len() as i32);
            out.extend(name.as_bytes());
            int(&mut out, calls);
            int(&mut out, means.len() as i32);
            out.extend(means.iter().flat_map(|x| (x * calls as f32).to_le_bytes()));
        }
        int(&mut out, calls);
        let dataset = self.datasets.first().map_or("", String::as_str);
        int(&mut out, dataset.len() as i32);
        out.extend(dataset.as_bytes());
        out
    }

    fn from_legacy(bytes: &[u8]) -> Result<Self, String> {
        let mut rest = bytes;
        let count = int(&mut rest)?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let length = int(&mut rest)?;
            let name = String::from_utf8(take(&mut rest, length)?.to_vec()).map_err(|_| "a name is not UTF-8")?;
            let (calls, values) = (int(&mut rest)?.max(1), int(&mut rest)?);
            let (floats, _) = take(&mut rest, values.checked_mul(4).ok_or("a length is too large")?)?.as_chunks::<4>();
            let means = floats.iter().map(|b| f32::from_le_bytes(*b) / calls as f32).collect();
            entries.insert(name, means);
        }
        if entries.is_empty() {
            return Err("is no importance matrix: it has no entries".into());
        }
        // Files of older versions end here.
        let chunks = if rest.is_empty() { 0 } else { int(&mut rest)? as u32 };
        let dataset = if rest.is_empty() {
            String::new()
        } else {
            let length = int(&mut rest)?;
            String::from_utf8_lossy(take(&mut rest, length)?).into_owned()
        };
        Ok(Self { entries, datasets: vec![dataset], chunks, chunk_size: 0 })
    }
}

/// Whether a tensor holds the matrices of experts, each of which reads other rows.
fn are_experts(feeds: &[String]) -> bool {
    feeds[0].contains(".experts.")
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (taken, left) =
        rest.split_at_checked(length).ok_or("ends in the middle of an importance matrix, or is none")?;
    *rest = left;
    Ok(taken)
}

fn int(rest: &mut &[u8]) -> Result<usize, String> {
    let bytes = take(rest, 4)?.first_chunk::<4>().ok_or("ends too early")?;
    usize::try_from(i32::from_le_bytes(*bytes)).map_err(|_| "is no importance matrix: a count is negative".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ImatrixFile {
        ImatrixFile {
            entries: BTreeMap::from([
                ("blk.0.attn_q.weight".to_owned(), vec![0.5, 2.0, 0.0]),
                ("output.weight".to_owned(), vec![1.0, 4.0]),
            ]),
            datasets: vec!["text.txt".into()],
            chunks: 4,
            chunk_size: 128,
        }
    }

    #[test]
    fn experts_keep_their_own_importances_in_one_entry() {
        let config = serde_json::json!({
            "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 16,
            "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2,
        });
        let model = LanguageModel::new(&config, 1).expect("a valid configuration");
        let name = |expert: usize| format!("layers.0.feed_forward.experts.{expert}.down_proj.weight");
        let query = "layers.0.attention.q_proj.weight".to_owned();
        let importance =
            Importance::from([(name(0), vec![1.0; 12]), (name(2), vec![3.0; 12]), (query.clone(), vec![5.0; 8])]);
        let file = ImatrixFile::of(&model, &importance, "text.txt", 4, 128).expect("mixtral is in GGUF");
        assert_eq!(file.entries["blk.0.ffn_down_exps.weight"], [[1.0; 12], [0.0; 12], [3.0; 12]].concat());
        let read = file.importance(&model, Path::new("m.dat")).expect("its own model");
        assert_eq!((&read[&name(1)], &read[&name(2)], &read[&query]), (&vec![0.0; 12], &vec![3.0; 12], &vec![5.0; 8]));
        let short = ImatrixFile { entries: [("blk.0.ffn_down_exps.weight".into(), vec![1.0; 12])].into(), ..file };
        let refused = short.importance(&model, Path::new("m.dat")).expect_err("one expert's").to_string();
        assert!(refused.contains("has 12 inputs, the model 36"), "{refused}");
    }

    #[test]
    fn both_forms_come_back_as_they_were() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["m.dat", "m.gguf"] {
            let path = dir.path().join(name);
            sample().write(&path).expect("written");
            let read = ImatrixFile::read(&path).expect("read");
            let expected = ImatrixFile { chunk_size: if name == "m.dat" { 0 } else { 128 }, ..sample() };
            assert_eq!(read, expected, "{name}");
        }
    }

    #[test]
    fn damaged_files_are_refused_wherever_they_end() {
        let whole = sample().to_legacy();
        let last_entry = whole.len() - 4 - 4 - "text.txt".len();
        for end in 0..last_entry {
            assert!(ImatrixFile::from_legacy(&whole[..end]).is_err(), "{end} of {} bytes", whole.len());
        }
        assert!(ImatrixFile::from_legacy(&[0xff; 64]).is_err());
        assert!(ImatrixFile::from_legacy(&[0x7f; 64]).is_err());
    }
}

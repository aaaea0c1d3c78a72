//! `loam model pull`, `list` and `rm`: the local store of models, `$LOAM_HOME/models`.

use crate::args::{JsonArgs, PullArgs, RmArgs};
use crate::failure::Failure;
use crate::hub::{FileInfo, Hub, Trouble, Wanted, check_path, download, is_same};
use crate::locate::only_gguf;
use crate::machine::free_disk;
use crate::output;
use crate::progress::Progress;
use crate::setup::Environment;
use crate::table::{Table, bytes};
use glob::Pattern;
use loam_formats::hf_dir::CONFIG;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a pulled model remembers of where it is from.
const ORIGIN: &str = ".loam-origin.json";
/// Where models lie until all of their files are there.
const UNFINISHED: &str = ".unfinished";
/// Files beside the weights that a model is opened with, or that people read.
const USUAL: [&str; 8] = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "*/config.json", "*.tiktoken"];
/// Tries of a short question.
const TRIES: u32 = 4;

fn models_dir(environment: &Environment) -> Result<PathBuf, Failure> {
    let home = environment
        .home
        .as_ref()
        .ok_or_else(|| Failure::with_hint("there is no place for a local store", "set LOAM_HOME to a directory"))?;
    Ok(home.join("models"))
}

/// `loam model pull`.
pub fn pull(args: &PullArgs, environment: &Environment) -> Result<(), Failure> {
    let repo = args.repo.trim_end_matches('/');
    let is_name = check_path(repo).is_ok() && !repo.starts_with('.') && repo.split('/').count() <= 2;
    if !is_name {
        let hint = "names look like Qwen/Qwen3-0.6B; another hub is named by HF_ENDPOINT";
        return Err(Failure::with_hint(format!("`{repo}` is no name of a repository"), hint));
    }
    let store = models_dir(environment)?;
    let hub = Hub::new(environment.hub_endpoint.as_deref(), environment.hub_token.as_deref())?;
    let revision = patient(|| hub.revision(repo, &args.revision))?;
    let listed: Vec<String> = revision.siblings.into_iter().map(|file| file.rfilename).collect();
    listed.iter().try_for_each(|file| check_path(file))?;
    let files = chosen(args, repo, &listed)?;
    let commit = revision.sha;
    let mut infos = Vec::new();
    for file in &files {
        infos.push((file.clone(), patient(|| hub.info(repo, &commit, file))?));
    }
    let (place, staging) = (store.join(repo), store.join(UNFINISHED).join(repo.replace('/', "--")));
    let total: u64 = infos.iter().filter_map(|(_, info)| info.size).sum();
    let (fetched, kept) = fetch(&hub, repo, &commit, &infos, &place, &staging, total)?;
    let origin = json!({
        "endpoint": hub.endpoint(), "repo": repo, "revision": args.revision, "commit": commit,
        "files": infos.iter().map(|(name, info)| json!({"name": name, "etag": info.etag, "bytes": info.size})).collect::<Vec<_>>(),
    });
    put(&staging, &place, &origin)?;
    if args.json {
        return output::json(&json!({
            "path": place, "repo": repo, "commit": commit, "files": files, "bytes": total, "fetched": fetched, "kept": kept,
        }));
    }
    output::line(&format!("{}  {} files, {}", place.display(), files.len(), bytes(total as usize)))?;
    output::say(&format!("{fetched} fetched, {kept} there already; use it as `{repo}`"));
    Ok(())
}

/// The files of a listing that are wanted.
fn chosen(args: &PullArgs, repo: &str, listed: &[String]) -> Result<Vec<String>, Failure> {
    let read = |text: &String| {
        Pattern::new(text)
            .map_err(|e| Failure::with_hint(format!("`{text}` is no pattern: {e}"), "such as '*q4_k_m.gguf'"))
    };
    let includes = args.include.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let excludes = args.exclude.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let wants = |file: &str| match includes.is_empty() {
        true => is_usual(file, listed),
        false => includes.iter().any(|pattern| pattern.matches(file)),
    };
    let chosen: Vec<String> =
        listed.iter().filter(|f| wants(f) && !excludes.iter().any(|p| p.matches(f))).cloned().collect();
    let ends = |end: &str| listed.iter().filter(|f| f.ends_with(end)).map(String::as_str).collect::<Vec<_>>();
    let has_weights = chosen.iter().any(|file| is_weights(file));
    if includes.is_empty() && !has_weights && !ends(".gguf").is_empty() {
        let hint =
            format!("choose with --include, such as --include '*q4_k_m.gguf'; there are {}", ends(".gguf").join(", "));
        return Err(Failure::with_hint(format!("{repo} has several GGUF files"), hint));
    }
    if chosen.is_empty() {
        let hint = format!("it has {}", listed.join(", "));
        return Err(Failure::with_hint(format!("{repo} has no file that is wanted"), hint));
    }
    Ok(chosen)
}

fn is_weights(file: &str) -> bool {
    [".safetensors", ".gguf", ".bin"].iter().any(|end| file.ends_with(end))
}

/// Whether a file belongs to a model as Loam opens it: safetensors before PyTorch's files, a GGUF file where it is the
/// only one, nothing of other formats.
fn is_usual(file: &str, listed: &[String]) -> bool {
    let is_top = !file.contains('/');
    let has_safetensors = listed.iter().any(|f| !f.contains('/') && f.ends_with(".safetensors"));
    if is_weights(file) {
        let ggufs = listed.iter().filter(|f| f.ends_with(".gguf")).count();
        return is_top
            && match file {
                f if f.ends_with(".safetensors") => true,
                f if f.ends_with(".gguf") => ggufs == 1 && !has_safetensors,
                f => f.starts_with("pytorch_model") && !has_safetensors,
            };
    }
    // Directories hold configurations of sentence-transformers' modules.
    USUAL.iter().any(|usual| Pattern::new(usual).is_ok_and(|pattern| pattern.matches(file)))
        && (is_top || file.ends_with("/config.json"))
}

/// Asks again where the hub or the connection is at fault for a moment.
fn patient<T>(mut ask: impl FnMut() -> Result<T, Trouble>) -> Result<T, Failure> {
    let mut tries = 0;
    loop {
        match ask() {
            Err(Trouble::Passing(_, wait)) if tries + 1 < TRIES => {
                let pause = wait.unwrap_or(Duration::from_millis(200 << tries));
                std::thread::sleep(pause.min(Duration::from_secs(60)));
                tries += 1;
            }
            other => return Ok(other?),
        }
    }
}

/// Brings every file into `staging`, from `place` where it is there unchanged. How many were fetched, and how many not.
fn fetch(
    hub: &Hub,
    repo: &str,
    commit: &str,
    infos: &[(String, FileInfo)],
    place: &Path,
    staging: &Path,
    total: u64,
) -> Result<(usize, usize), Failure> {
    let fail = |path: &Path, e: &io::Error| Failure::io(&format!("cannot write {}", path.display()), e);
    fs::create_dir_all(staging).map_err(|e| fail(staging, &e))?;
    let (mut missing, mut kept) = (Vec::new(), 0);
    for (file, info) in infos {
        let target = staging.join(file);
        if is_same(&target, info) {
            kept += 1;
        } else if is_same(&place.join(file), info) {
            let parent = target.parent().unwrap_or(staging);
            fs::create_dir_all(parent).map_err(|e| fail(parent, &e))?;
            // The same bytes under another name where the disk allows it.
            fs::hard_link(place.join(file), &target)
                .or_else(|_| fs::copy(place.join(file), &target).map(|_| ()))
                .map_err(|e| fail(&target, &e))?;
            kept += 1;
        } else {
            missing.push((file, info));
        }
    }
    let needed: u64 = missing.iter().filter_map(|(_, info)| info.size).sum();
    if let Some(free) = free_disk(staging).filter(|&free| free < needed) {
        let message = format!("{} are needed, the disk has {}", bytes(needed as usize), bytes(free as usize));
        return Err(Failure::with_hint(message, "free some space, or set LOAM_HOME to another disk"));
    }
    let mut progress = Progress::new(&format!("pulling {repo}"), total);
    let mut done = total - needed;
    for (file, info) in &missing {
        let wanted = Wanted { repo, commit, file, info };
        let mut watch = |have: u64| progress.update(done + have, file);
        download(hub, &wanted, &staging.join(file), &mut watch)?;
        done += info.size.unwrap_or(0);
    }
    progress.finish();
    Ok((missing.len(), kept))
}

/// Puts a complete directory in its place, where another may be.
fn put(staging: &Path, place: &Path, origin: &Value) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::io(&format!("cannot write {}", place.display()), &e);
    fs::write(staging.join(ORIGIN), serde_json::to_string_pretty(origin)?).map_err(fail)?;
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let old = staging.with_extension("old");
    if place.exists() {
        fs::rename(place, &old).map_err(fail)?;
    }
    fs::rename(staging, place).map_err(fail)?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(fail)?;
    }
    // What is left of other pulls stays.
    let _ = fs::remove_dir(staging.parent().unwrap_or(staging));
    Ok(())
}

/// A model of the store.
struct Stored {
    name: String,
    path: PathBuf,
    bytes: u64,
    kind: &'static str,
    origin: Option<Value>,
}

/// All models below a directory, by name.
fn stored(store: &Path, below: &Path, found: &mut Vec<Stored>) -> io::Result<()> {
    let entries = match fs::read_dir(below) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.strip_prefix(store).unwrap_or(&path).to_string_lossy().into_owned();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        let is_gguf = loam_formats::Gguf::is_one(&path) || (path.is_dir() && only_gguf(&path).is_some());
        if path.join(CONFIG).is_file() || is_gguf || path.join(ORIGIN).is_file() {
            let text = fs::read_to_string(path.join(ORIGIN)).ok();
            let origin = text.and_then(|text| serde_json::from_str(&text).ok());
            let kind = if is_gguf { "GGUF" } else { "directory" };
            found.push(Stored { name, bytes: size_of(&path)?, path, kind, origin });
        } else if path.is_dir() {
            stored(store, &path, found)?;
        }
    }
    Ok(())
}

fn size_of(path: &Path) -> io::Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    fs::read_dir(path)?.try_fold(0, |sum, entry| Ok(sum + size_of(&entry?.path())?))
}

fn all(environment: &Environment) -> Result<(PathBuf, Vec<Stored>), Failure> {
    let store = models_dir(environment)?;
    let mut found = Vec::new();
    stored(&store, &store, &mut found).map_err(|e| Failure::io(&format!("cannot read {}", store.display()), &e))?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((store, found))
}

/// `loam model list`.
pub fn list(args: &JsonArgs, environment: &Environment) -> Result<(), Failure> {
    let (store, found) = all(environment)?;
    if args.json {
        let models = found
            .iter()
            .map(|m| json!({"name": m.name, "path": m.path, "bytes": m.bytes, "kind": m.kind, "origin": m.origin}));
        return output::json(&json!({"store": store, "models": models.collect::<Vec<_>>()}));
    }
    if found.is_empty() {
        output::say(&format!("{} is empty; `loam model pull REPO` fetches a model", store.display()));
        return Ok(());
    }
    let mut table = Table::new(&["name", "kind", "size", "commit"]);
    for model in &found {
        let commit = model.origin.as_ref().and_then(|origin| origin["commit"].as_str()).unwrap_or("-");
        let commit: String = commit.chars().take(12).collect();
        table.row(vec![model.name.clone(), model.kind.into(), bytes(model.bytes as usize), commit]);
    }
    table.lines().iter().try_for_each(|line| output::line(line))
}

/// `loam model rm`.
pub fn remove(args: &RmArgs, environment: &Environment) -> Result<(), Failure> {
    let (store, found) = all(environment)?;
    let Some(model) = found.iter().find(|model| model.name == args.name) else {
        let names: Vec<&str> = found.iter().map(|model| model.name.as_str()).collect();
        let nearest = loam_formats::nearest(&args.name, names.iter().copied());
        let hint = match nearest {
            Some(name) => format!("the nearest name is `{name}`; `loam model list` shows all"),
            None => format!("`loam model list` shows what is in {}", store.display()),
        };
        return Err(Failure::with_hint(format!("there is no model `{}` in the local store", args.name), hint));
    };
    let fail = |e: io::Error| Failure::io(&format!("cannot remove {}", model.path.display()), &e);
    if model.path.is_dir() {
        fs::remove_dir_all(&model.path).map_err(fail)?;
    } else {
        fs::remove_file(&model.path).map_err(fail)?;
    }
    // The owner's directory goes with its last model.
    if let Some(parent) = model.path.parent().filter(|parent| *parent != store) {
        let _ = fs::remove_dir(parent);
    }
    output::line(&format!("{}  removed, {} freed", model.name, bytes(model.bytes as usize)))
}

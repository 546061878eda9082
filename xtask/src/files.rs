//! A report of source files that have outgrown one idea (style: a median below 400 lines, a look for the seam at 600).

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::run::root;

/// Past this a file is listed.
const LINES_LOOK_FOR_THE_SEAM: usize = 600;

/// Prints the longest files; never fails for length.
pub fn report() -> anyhow::Result<()> {
    let mut long = Vec::new();
    let mut counted = 0;
    visit(&root(), &mut |path| {
        let lines =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?.lines().count();
        counted += 1;
        if lines > LINES_LOOK_FOR_THE_SEAM {
            long.push((lines, path.strip_prefix(root()).unwrap_or(path).display().to_string()));
        }
        Ok(())
    })?;
    long.sort_unstable_by(|a, b| b.cmp(a));
    println!("\n== file lengths: {counted} files, {} above {LINES_LOOK_FOR_THE_SEAM} lines", long.len());
    for (lines, path) in long {
        println!("   {lines:5} {path}");
    }
    Ok(())
}

/// Calls `each` with every Rust source file below `directory`.
pub(crate) fn visit(directory: &Path, each: &mut impl FnMut(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "build" && !name.starts_with('.') {
                visit(&path, each)?;
            }
        } else if name.ends_with(".rs") {
            each(&path)?;
        }
    }
    Ok(())
}

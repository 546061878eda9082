//! Small files of the data directory without which a daemon cannot start. Each is kept twice, in `NAME` and `NAME.copy`,
//! and ends with a checksum (`docs/formats/osd-directory.md`): one flipped bit, or one file that is gone, is no obstacle, and
//! is never taken for other content.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use tracing::warn;

/// `text` and the line with its checksum.
fn sealed(text: &str) -> String {
    format!("{text}checksum={:08x}\n", crc_fast::crc32_iscsi(text.as_bytes()))
}

/// The text that was sealed; `None` when this is not it. What has no checksum may be of an earlier build: see [`read`].
fn unsealed(content: &str) -> Option<&str> {
    let (text, _) = content.split_at_checked(content.rfind("checksum=")?)?;
    (sealed(text) == content).then_some(text)
}

/// What [`read`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kept<T> {
    /// Neither file is there.
    Nothing,
    /// No file that is there is whole.
    Damaged,
    /// The content.
    Whole(T),
}

/// The content of `name` in `dir`, of the first file that is whole and that `parse` understands; the other one is written
/// anew when it is another, if it can be. `parse_old` is given what has no checksum: what earlier builds wrote, once.
///
/// # Errors
/// A file cannot be read, and the other one is not whole.
pub(crate) fn read<T>(
    dir: &Path,
    name: &str,
    parse: impl Fn(&str) -> Option<T>,
    parse_old: impl Fn(&str) -> Option<T>,
) -> io::Result<Kept<T>> {
    let names = names(name);
    let (mut contents, mut unreadable) = (Vec::new(), None);
    for file in &names {
        contents.push(match fs::read(dir.join(file)) {
            // What is no text is not whole.
            Ok(bytes) => Some(String::from_utf8(bytes).unwrap_or_default()),
            Err(error) => {
                unreadable = Some(error).filter(|error| error.kind() != io::ErrorKind::NotFound).or(unreadable);
                None
            }
        });
    }
    let whole = contents.iter().flatten().find_map(|content| {
        let text = unsealed(content)?;
        Some((text.to_owned(), parse(text)?))
    });
    if let Some((text, found)) = whole {
        let wanted = sealed(&text);
        for (file, content) in names.iter().zip(&contents) {
            if content.as_deref() != Some(wanted.as_str()) {
                let path = dir.join(file).display().to_string();
                warn!(path, "damaged, or not there: it is written anew from its copy");
                if let Err(error) = replace_durably(dir, file, &wanted) {
                    // A full file system, say: the next start tries again, and this one has all that it needs.
                    warn!(path, %error, "it cannot be written: there is no copy now");
                }
            }
        }
        return Ok(Kept::Whole(found));
    }
    if let Some(error) = unreadable {
        return Err(error);
    }
    let old = contents.iter().flatten().find_map(|content| parse_old(content));
    Ok(match old {
        Some(found) => Kept::Whole(found),
        None if contents.iter().any(Option::is_some) => Kept::Damaged,
        None => Kept::Nothing,
    })
}

/// Makes `text` the durable content of `name` in `dir`. A crash leaves the old content or the new.
pub(crate) fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let content = sealed(text);
    names(name).iter().try_for_each(|file| replace_durably(dir, file, &content))
}

fn names(name: &str) -> [String; 2] {
    [name.to_owned(), format!("{name}.copy")]
}

/// Replaces a file by a rename after a sync, and syncs the directory after that.
pub(crate) fn replace_durably(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(dir: &Path) -> Kept<String> {
        read(dir, "file", |text| Some(text.to_owned()), |old| old.strip_prefix("old ").map(str::to_owned))
            .expect("readable")
    }

    #[test]
    fn no_flipped_bit_in_one_of_two_files_changes_what_is_kept_and_the_file_is_mended() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(read_text(dir.path()), Kept::Nothing);
        write(dir.path(), "file", "a=1\nb=2\n").expect("written");
        let content = fs::read(dir.path().join("file")).expect("read");
        for file in ["file", "file.copy"] {
            for bit in 0..content.len() * 8 {
                let mut bytes = content.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                fs::write(dir.path().join(file), bytes).expect("written");
                assert_eq!(read_text(dir.path()), Kept::Whole("a=1\nb=2\n".to_owned()), "bit {bit} of {file}");
                assert_eq!(fs::read(dir.path().join(file)).expect("read"), content, "bit {bit} of {file}");
            }
            fs::remove_file(dir.path().join(file)).expect("removed");
            assert_eq!(read_text(dir.path()), Kept::Whole("a=1\nb=2\n".to_owned()), "without {file}");
        }
    }

    #[test]
    fn a_file_that_can_be_neither_read_nor_written_is_no_obstacle_while_the_other_one_is_whole() {
        for (file, other) in [("file", "file.copy"), ("file.copy", "file")] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            write(dir.path(), "file", "a=1\n").expect("written");
            // A directory in its place, with something in it: reading fails, and so does renaming over it.
            fs::remove_file(dir.path().join(file)).expect("removed");
            fs::create_dir_all(dir.path().join(file).join("inside")).expect("made");
            assert_eq!(read_text(dir.path()), Kept::Whole("a=1\n".to_owned()), "without {file}");
            fs::remove_file(dir.path().join(other)).expect("removed");
            assert!(read(dir.path(), "file", |_| Some(()), |_| None).is_err(), "it may hold what is asked for");
        }
    }

    #[test]
    fn what_is_damaged_twice_is_not_taken_for_what_an_earlier_build_wrote() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("file"), "old a").expect("written");
        assert_eq!(read_text(dir.path()), Kept::Whole("a".to_owned()));
        write(dir.path(), "file", "new").expect("written");
        for file in ["file", "file.copy"] {
            let path = dir.path().join(file);
            let mut bytes = fs::read(&path).expect("read");
            bytes[0] ^= 1;
            fs::write(path, bytes).expect("written");
        }
        assert_eq!(read_text(dir.path()), Kept::Damaged);
    }
}

//! Splitting text into statements, by SQLite's own judgement of where one ends: strings, comments and the bodies of triggers
//! contain semicolons that end nothing.

use std::ffi::CString;

/// Bytes of one line of a script that are read at a time.
pub(super) const LONGEST_LINE: u64 = 64 << 20;

/// Text that is split as it grows.
#[derive(Debug)]
pub(super) struct Script {
    /// What has not been taken yet.
    text: String,
    /// Up to here no statement ends.
    searched: usize,
    /// The line that `text` begins on.
    line: usize,
}

impl Default for Script {
    fn default() -> Self {
        Self { text: String::new(), searched: 0, line: 1 }
    }
}

impl Script {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// The next complete statement that is not blank, and the line it begins on.
    pub(super) fn next_statement(&mut self) -> Option<(usize, String)> {
        while let Some(semicolon) = self.text[self.searched..].find(';') {
            let end = self.searched + semicolon + 1;
            if !is_complete(&self.text[..end]) {
                self.searched = end;
                continue;
            }
            let statement: String = self.text.drain(..end).collect();
            self.searched = 0;
            let line = self.line + leading_newlines(&statement);
            self.line += newlines(&statement);
            if !is_blank(&statement) {
                return Some((line, statement.trim().to_owned()));
            }
        }
        None
    }

    /// What comes after the last complete statement, and the line it begins on.
    pub(super) fn rest(self) -> (usize, String) {
        (self.line + leading_newlines(&self.text), self.text.trim().to_owned())
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

fn leading_newlines(text: &str) -> usize {
    newlines(&text[..text.len() - text.trim_start().len()])
}

/// Whether the text ends in a semicolon that ends a statement.
pub(super) fn is_complete(text: &str) -> bool {
    // SQLite reads text with a NUL up to there; the server says what is wrong with it.
    let Ok(text) = CString::new(text) else { return true };
    // SAFETY: sqlite3_complete reads a NUL-terminated string, keeps no reference to it and needs no initialisation.
    unsafe { rusqlite::ffi::sqlite3_complete(text.as_ptr()) != 0 }
}

/// Whether there is nothing to run: only space, comments and semicolons.
pub(super) fn is_blank(text: &str) -> bool {
    // After a semicolon SQLite is between two statements, and only what is no statement leaves it there.
    let text = text.trim_end_matches(|character: char| character == ';' || character.is_whitespace());
    is_complete(&format!(";{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> (Vec<(usize, String)>, String) {
        let mut script = Script::default();
        let mut statements = Vec::new();
        for line in text.split_inclusive('\n') {
            script.push(line);
            while let Some(statement) = script.next_statement() {
                statements.push(statement);
            }
        }
        (statements, script.rest().1)
    }

    #[test]
    fn statements_end_where_sqlite_says() {
        let (statements, rest) = split(
            "SELECT ';' -- ; not here\n, \"a;b\";;\n/* ; */ INSERT INTO t VALUES (1); SELECT 2\n;\n\
             CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;\nSELECT 3 -- the end\n",
        );
        let expected = [
            (1, "SELECT ';' -- ; not here\n, \"a;b\";"),
            (3, "/* ; */ INSERT INTO t VALUES (1);"),
            (3, "SELECT 2\n;"),
            (5, "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;"),
        ];
        assert_eq!(statements, expected.map(|(line, text)| (line, text.to_owned())));
        assert_eq!(rest, "SELECT 3 -- the end");
    }

    #[test]
    fn comments_alone_are_nothing_to_run() {
        for text in ["", " \n", ";", "-- x", "/* x */ ; ", "-- x;\n"] {
            assert!(is_blank(text), "{text:?}");
        }
        for text in ["SELECT 1", "x", "'", "-- a\nSELECT 1;"] {
            assert!(!is_blank(text), "{text:?}");
        }
    }
}

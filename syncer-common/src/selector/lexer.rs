//! Selector text → tokens, each with its byte offset.
//!
//! Blank means space and tab; a newline is an error outside strings. Word operators (`in`, `contains`,
//! `starts with`, …) are looked for only right after a label, so that labels may be called `in` or
//! `contains`. `has(`, `all(` and `global(` touch their parenthesis; otherwise they are labels too.

use super::ParseError;

/// Longest label name.
const MAX_LABEL: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Label(&'a str),
    Text(&'a str),
    Has(&'a str),
    All,
    Global,
    Not,
    And,
    Or,
    Equal,
    NotEqual,
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
    OpenBrace,
    CloseBrace,
    Comma,
    OpenParen,
    CloseParen,
    End,
}

impl Token<'_> {
    /// How messages name it.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Token::Label(_) => "a label",
            Token::Text(_) => "a string",
            Token::Has(_) => "has(...)",
            Token::All => "all()",
            Token::Global => "global()",
            Token::Not => "!",
            Token::And => "&&",
            Token::Or => "||",
            Token::Equal => "==",
            Token::NotEqual => "!=",
            Token::In => "in",
            Token::NotIn => "not in",
            Token::Contains => "contains",
            Token::StartsWith => "starts with",
            Token::EndsWith => "ends with",
            Token::OpenBrace => "{",
            Token::CloseBrace => "}",
            Token::Comma => ",",
            Token::OpenParen => "(",
            Token::CloseParen => ")",
            Token::End => "the end",
        }
    }
}

/// A cursor over selector text. All delimiters are ASCII, so offsets always fall between characters.
pub(super) struct Lexer<'a> {
    text: &'a str,
    offset: usize,
    after_label: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Lexer { text, offset: 0, after_label: false }
    }

    /// The next token and where it starts; `End` again and again once the text is used up.
    pub(super) fn next(&mut self) -> Result<(usize, Token<'a>), ParseError> {
        self.skip_blanks();
        let start = self.offset;
        let after_label = std::mem::take(&mut self.after_label);
        if after_label && let Some(operator) = self.word_operator() {
            return Ok((start, operator));
        }
        let rest = self.rest();
        let token = match rest.as_bytes() {
            [] => Token::End,
            [quote @ (b'"' | b'\''), ..] => self.string(char::from(*quote))?,
            [b'=', b'=', ..] => self.symbol(2, Token::Equal),
            [b'!', b'=', ..] => self.symbol(2, Token::NotEqual),
            [b'&', b'&', ..] => self.symbol(2, Token::And),
            [b'|', b'|', ..] => self.symbol(2, Token::Or),
            [b'!', ..] => self.symbol(1, Token::Not),
            [b'{', ..] => self.symbol(1, Token::OpenBrace),
            [b'}', ..] => self.symbol(1, Token::CloseBrace),
            [b',', ..] => self.symbol(1, Token::Comma),
            [b'(', ..] => self.symbol(1, Token::OpenParen),
            [b')', ..] => self.symbol(1, Token::CloseParen),
            [byte, ..] if is_label_byte(*byte) => self.word()?,
            _ => return Err(ParseError::new(start, "unexpected character")),
        };
        Ok((start, token))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn skip_blanks(&mut self) {
        self.offset = self.text.len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn symbol(&mut self, length: usize, token: Token<'a>) -> Token<'a> {
        self.offset += length;
        token
    }

    fn string(&mut self, quote: char) -> Result<Token<'a>, ParseError> {
        let content = &self.rest()[1..];
        let length =
            content.find(quote).ok_or_else(|| ParseError::new(self.offset, "string has no closing quote"))?;
        self.offset += length + 2;
        Ok(Token::Text(&content[..length]))
    }

    /// A label, or one of the functions when an opening parenthesis touches the word.
    fn word(&mut self) -> Result<Token<'a>, ParseError> {
        let rest = self.rest();
        if rest.starts_with("has(") {
            self.offset += "has(".len();
            self.skip_blanks();
            let name = self.label()?;
            self.close_function()?;
            Ok(Token::Has(name))
        } else if rest.starts_with("all(") {
            self.offset += "all(".len();
            self.close_function()?;
            Ok(Token::All)
        } else if rest.starts_with("global(") {
            self.offset += "global(".len();
            self.close_function()?;
            Ok(Token::Global)
        } else {
            let name = self.label()?;
            self.after_label = true;
            Ok(Token::Label(name))
        }
    }

    fn label(&mut self) -> Result<&'a str, ParseError> {
        let rest = self.rest();
        let length = rest.bytes().take_while(|byte| is_label_byte(*byte)).count();
        match length {
            0 => Err(ParseError::new(self.offset, "expected a label name")),
            1..=MAX_LABEL => {
                self.offset += length;
                Ok(&rest[..length])
            }
            _ => Err(ParseError::new(self.offset, "label name is longer than 512 characters")),
        }
    }

    fn close_function(&mut self) -> Result<(), ParseError> {
        self.skip_blanks();
        if self.rest().starts_with(')') {
            self.offset += 1;
            Ok(())
        } else {
            Err(ParseError::new(self.offset, "expected ) to close the function"))
        }
    }

    fn word_operator(&mut self) -> Option<Token<'a>> {
        const OPERATORS: [(&[&str], Token<'static>); 5] = [
            (&["contains"], Token::Contains),
            (&["starts", "with"], Token::StartsWith),
            (&["ends", "with"], Token::EndsWith),
            (&["not", "in"], Token::NotIn),
            (&["in"], Token::In),
        ];
        let rest = self.rest();
        for (words, operator) in OPERATORS {
            let after = words
                .iter()
                .try_fold(rest, |left, word| left.trim_start_matches([' ', '\t']).strip_prefix(word));
            if let Some(after) = after
                && !after.bytes().next().is_some_and(is_label_byte)
            {
                self.offset = self.text.len() - after.len();
                return Some(operator);
            }
        }
        None
    }
}

fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-')
}

//! Tokens → expression, by recursive descent.
//!
//! Recursion is bounded: [`MAX_DEPTH`] limits both the parentheses of the text and the nesting of the
//! expression, so that a hostile selector cannot exhaust the stack here or in anything that walks the
//! result, and so that the canonical form of what was accepted is accepted too.

use super::ParseError;
use super::expression::{Expression, Operator};
use super::lexer::{Lexer, Token};

/// Deepest nesting of groups.
pub(super) const MAX_DEPTH: usize = 256;

pub(super) fn parse(text: &str) -> Result<Expression, ParseError> {
    let mut parser = Parser::new(text)?;
    if parser.token == Token::End {
        return Ok(Expression::All);
    }
    let expression = parser.alternatives(0)?.expression;
    if parser.token == Token::End {
        Ok(expression)
    } else {
        Err(parser.unexpected("expected && or || or the end"))
    }
}

/// An expression and how many groups (and, or) nest in it.
struct Nested {
    expression: Expression,
    groups: usize,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    offset: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, ParseError> {
        let mut lexer = Lexer::new(text);
        let (offset, token) = lexer.next()?;
        Ok(Parser { lexer, token, offset })
    }

    fn advance(&mut self) -> Result<Token<'a>, ParseError> {
        let (offset, next) = self.lexer.next()?;
        self.offset = offset;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn unexpected(&self, wanted: &str) -> ParseError {
        ParseError::new(self.offset, format!("{wanted}, found {}", self.token.describe()))
    }

    fn alternatives(&mut self, parentheses: usize) -> Result<Nested, ParseError> {
        let start = self.offset;
        let mut members = vec![self.conjunction(parentheses)?];
        while self.token == Token::Or {
            self.advance()?;
            members.push(self.conjunction(parentheses)?);
        }
        group(members, Expression::Or, start)
    }

    fn conjunction(&mut self, parentheses: usize) -> Result<Nested, ParseError> {
        let start = self.offset;
        let mut members = vec![self.operation(parentheses)?];
        while self.token == Token::And {
            self.advance()?;
            members.push(self.operation(parentheses)?);
        }
        group(members, Expression::And, start)
    }

    /// One operand, with the negations before it: an even run of them cancels out.
    fn operation(&mut self, parentheses: usize) -> Result<Nested, ParseError> {
        let mut negated = false;
        while self.token == Token::Not {
            self.advance()?;
            negated = !negated;
        }
        let start = self.offset;
        let operand = match self.token {
            Token::Has(name) => {
                self.advance()?;
                leaf(Expression::Has(name.to_owned()))
            }
            Token::All => {
                self.advance()?;
                leaf(Expression::All)
            }
            Token::Global => {
                self.advance()?;
                leaf(Expression::Global)
            }
            Token::OpenParen => {
                if parentheses == MAX_DEPTH {
                    return Err(too_deep(start));
                }
                self.advance()?;
                let inner = self.alternatives(parentheses + 1)?;
                if self.token != Token::CloseParen {
                    return Err(self.unexpected("expected )"));
                }
                self.advance()?;
                inner
            }
            Token::Label(name) => {
                self.advance()?;
                leaf(self.comparison(name)?)
            }
            _ => return Err(self.unexpected("expected a label, a function, ! or (")),
        };
        Ok(if negated {
            Nested { expression: Expression::Not(Box::new(operand.expression)), ..operand }
        } else {
            operand
        })
    }

    fn comparison(&mut self, label: &str) -> Result<Expression, ParseError> {
        let operator = match self.token {
            Token::Equal => Operator::Equal,
            Token::NotEqual => Operator::NotEqual,
            Token::Contains => Operator::Contains,
            Token::StartsWith => Operator::StartsWith,
            Token::EndsWith => Operator::EndsWith,
            Token::In | Token::NotIn => {
                let negated = self.token == Token::NotIn;
                self.advance()?;
                let label = label.to_owned();
                let values = self.value_set()?;
                return Ok(if negated {
                    Expression::NotIn { label, values }
                } else {
                    Expression::In { label, values }
                });
            }
            _ => return Err(self.unexpected("expected an operator after the label")),
        };
        self.advance()?;
        let Token::Text(value) = self.token else {
            return Err(self.unexpected("expected a quoted string"));
        };
        self.advance()?;
        Ok(Expression::Compare { label: label.to_owned(), operator, value: value.to_owned() })
    }

    /// `{"a", "b"}`: may be empty and may end with a comma; sorted and without duplicates.
    fn value_set(&mut self) -> Result<Vec<String>, ParseError> {
        if self.token != Token::OpenBrace {
            return Err(self.unexpected("expected {"));
        }
        self.advance()?;
        let mut values = Vec::new();
        while let Token::Text(value) = self.token {
            values.push(value.to_owned());
            self.advance()?;
            if self.token != Token::Comma {
                break;
            }
            self.advance()?;
        }
        if self.token != Token::CloseBrace {
            return Err(self.unexpected("expected a quoted string or }"));
        }
        self.advance()?;
        values.sort_unstable();
        values.dedup();
        Ok(values)
    }
}

fn leaf(expression: Expression) -> Nested {
    Nested { expression, groups: 0 }
}

/// Joins members; a single one needs no group.
fn group(
    mut members: Vec<Nested>,
    join: fn(Vec<Expression>) -> Expression,
    start: usize,
) -> Result<Nested, ParseError> {
    if members.len() == 1
        && let Some(only) = members.pop()
    {
        return Ok(only);
    }
    let groups = 1 + members.iter().map(|member| member.groups).max().unwrap_or_default();
    if groups > MAX_DEPTH {
        return Err(too_deep(start));
    }
    let expression = join(members.into_iter().map(|member| member.expression).collect());
    Ok(Nested { expression, groups })
}

fn too_deep(offset: usize) -> ParseError {
    ParseError::new(offset, format!("groups nest deeper than {MAX_DEPTH}"))
}

//! Reads the text form of a map, and says where and why it cannot.
//!
//! As in Ceph, line breaks mean nothing, and what is named must have been defined above. Refused, by name: bucket
//! algorithms other than straw2 and uniform, tunables other than the jewel ones, `choose_args`.

use std::collections::{BTreeMap, BTreeSet};

use super::token::{Place, Token, tokens};
use crate::CrushMap;
use crate::ids::FreeIds;
use crate::model::{
    Bucket, BucketAlg, ChooseMode, ClassId, Device, FixedTunable, Item, ItemId, Parts, Rule, RuleId, RuleKind, Step,
    Tunables, TypeId, WEIGHT_ONE,
};
use crate::validate::{CLASS_COUNT_MAX, InvalidMap, Subject, is_name};

/// The bucket algorithms that a text allows by not saying anything.
pub(super) const LEGACY_BUCKET_ALGS: u32 = 0b10110;
/// The tunables that must be there, because Ceph takes older values for those that are not, and their only value here.
const REQUIRED_TUNABLES: [(&str, u32); 5] = [
    ("choose_local_tries", 0),
    ("choose_local_fallback_tries", 0),
    ("chooseleaf_descend_once", 1),
    ("chooseleaf_vary_r", 1),
    ("chooseleaf_stable", 1),
];

/// A text that is not a map that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub kind: ParseErrorKind,
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseErrorKind {
    /// Something else stands there.
    #[error("expected {expected}, found {found:?}")]
    Unexpected {
        /// What would have been right.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// Nothing more comes.
    #[error("expected {expected}, found the end of the text")]
    UnexpectedEnd {
        /// What would have been right.
        expected: &'static str,
    },
    /// A name that was not defined above.
    #[error("{what} {name:?} is not defined above")]
    Undefined {
        /// What it should be.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A second definition.
    #[error("{what} {name} is already defined")]
    Redefined {
        /// What it is.
        what: &'static str,
        /// The name or number.
        name: String,
    },
    /// A known bucket algorithm that is not implemented.
    #[error("bucket algorithm {name} is not supported, only straw2 and uniform are")]
    UnsupportedAlg {
        /// The algorithm.
        name: String,
    },
    /// A tunable or step with another value than the jewel profile's.
    #[error("{name} {value} is not supported, only {supported} is (the jewel profile)")]
    UnsupportedValue {
        /// The tunable or step.
        name: String,
        /// Its value in the text.
        value: u32,
        /// The only value.
        supported: u32,
    },
    /// A tunable that is not there, which means a value from before jewel.
    #[error(
        "tunable {name} is missing, which means a profile older than jewel: `tunable {name} {supported}` is supported"
    )]
    MissingTunable {
        /// The tunable.
        name: &'static str,
        /// The value it would need.
        supported: u32,
    },
    /// A part of the map that is not implemented.
    #[error("{what} is not supported")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// An item's position that does not exist or is taken.
    #[error("position {position} of the bucket is taken, or not below its {size} items")]
    BadPosition {
        /// The position.
        position: usize,
        /// How many items there are.
        size: usize,
    },
    /// A map that reads well but cannot be.
    #[error(transparent)]
    Invalid(#[from] InvalidMap),
}

impl CrushMap {
    /// Reads a map from its text form.
    ///
    /// # Errors
    /// [`ParseError`] names the line and column and what is wrong there.
    pub fn parse_text(text: &str) -> Result<CrushMap, ParseError> {
        let (tokens, end) = tokens(text);
        let mut parser = Parser::new(&tokens, end);
        while parser.position < tokens.len() {
            parser.statement()?;
        }
        parser.finish()
    }
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    position: usize,
    end: Place,
    parts: Parts,
    /// The ids of items by name.
    items: BTreeMap<&'a str, ItemId>,
    tunables: BTreeMap<&'a str, u32>,
    free_ids: FreeIds,
    /// Where what a later check may refuse was defined.
    places: BTreeMap<Subject, Place>,
}

impl<'a> Parser<'a> {
    fn new(tokens: &'a [Token<'a>], end: Place) -> Parser<'a> {
        // Ids that the text gives anywhere are not free for buckets that it gives none.
        let given: BTreeSet<ItemId> = tokens
            .windows(2)
            .filter_map(|pair| match pair {
                [name, id] if name.text == "id" => id.text.parse().ok(),
                _ => None,
            })
            .collect();
        let tunables =
            Tunables { choose_total_tries: 19, straw_calc_version: 0, allowed_bucket_algs: LEGACY_BUCKET_ALGS };
        Parser {
            tokens,
            position: 0,
            end,
            parts: Parts { tunables, ..Parts::default() },
            items: BTreeMap::new(),
            tunables: BTreeMap::new(),
            free_ids: FreeIds::besides(given),
            places: BTreeMap::new(),
        }
    }

    fn finish(self) -> Result<CrushMap, ParseError> {
        for (name, supported) in REQUIRED_TUNABLES {
            if !self.tunables.contains_key(name) {
                return Err(error(self.end, ParseErrorKind::MissingTunable { name, supported }));
            }
        }
        CrushMap::from_parts(self.parts).map_err(|invalid| {
            let place = self.places.get(&invalid.subject()).copied().unwrap_or(self.end);
            error(place, invalid.into())
        })
    }

    fn statement(&mut self) -> Result<(), ParseError> {
        let first = self.next("a definition")?;
        match first.text {
            "tunable" => self.tunable(),
            "device" => self.device(),
            "type" => self.type_name(),
            "rule" => self.rule(),
            "choose_args" => Err(error(first.place, ParseErrorKind::Unsupported { what: "choose_args (weight sets)" })),
            name => match self.parts.type_named(name) {
                Some(type_id) => self.bucket(type_id),
                None => Err(unexpected(first, "tunable, device, type, rule or the name of a type")),
            },
        }
    }

    fn tunable(&mut self) -> Result<(), ParseError> {
        let name = self.next("the name of a tunable")?;
        let value: u32 = self.number("the tunable's value")?;
        match name.text {
            "choose_total_tries" => self.parts.tunables.choose_total_tries = value,
            "straw_calc_version" => self.parts.tunables.straw_calc_version = value,
            "allowed_bucket_algs" => self.parts.tunables.allowed_bucket_algs = value,
            // Newer releases print these; they only concern rules of a kind that is not supported.
            "msr_descents" | "msr_collision_tries" => {}
            other => {
                let Some((_, supported)) = REQUIRED_TUNABLES.iter().find(|(known, _)| *known == other) else {
                    return Err(unexpected(name, "the name of a tunable, such as choose_total_tries"));
                };
                self.require(name, value, *supported)?;
                self.tunables.insert(name.text, value);
            }
        }
        Ok(())
    }

    fn require(&self, name: Token<'a>, value: u32, supported: u32) -> Result<(), ParseError> {
        if value == supported {
            return Ok(());
        }
        Err(error(name.place, ParseErrorKind::UnsupportedValue { name: name.text.to_owned(), value, supported }))
    }

    fn device(&mut self) -> Result<(), ParseError> {
        let number = self.peek_place();
        let id: u32 = self.number("a device number")?;
        let item = ItemId::try_from(id)
            .map_err(|_| error(number, ParseErrorKind::Invalid(InvalidMap::DeviceIdOutOfRange { id })))?;
        let name = self.item_name(item)?;
        let class = self.optional_class()?;
        if self.parts.devices.insert(id, Device { name, class }).is_some() {
            return Err(error(number, ParseErrorKind::Redefined { what: "device", name: id.to_string() }));
        }
        Ok(())
    }

    /// A new name of an item.
    fn item_name(&mut self, id: ItemId) -> Result<String, ParseError> {
        let name = self.name("a name")?;
        if self.items.insert(name.text, id).is_some() {
            return Err(error(name.place, ParseErrorKind::Redefined { what: "item", name: name.text.to_owned() }));
        }
        Ok(name.text.to_owned())
    }

    /// `class NAME`, when it stands there.
    fn optional_class(&mut self) -> Result<Option<ClassId>, ParseError> {
        if !self.accept("class") {
            return Ok(None);
        }
        let name = self.name("the name of a device class")?;
        if let Some(class) = self.parts.class_named(name.text) {
            return Ok(Some(class));
        }
        let count = self.parts.classes.len();
        if count >= CLASS_COUNT_MAX {
            let what = InvalidMap::TooMany { what: "device classes", count: count + 1, limit: CLASS_COUNT_MAX };
            return Err(error(name.place, what.into()));
        }
        self.parts.classes.push(name.text.to_owned());
        Ok(self.parts.class_named(name.text))
    }

    fn type_name(&mut self) -> Result<(), ParseError> {
        let number = self.peek_place();
        let id: TypeId = self.number("a type number of 0 to 65535")?;
        let name = self.name("the name of a type")?;
        if self.parts.type_named(name.text).is_some() {
            return Err(error(name.place, ParseErrorKind::Redefined { what: "type", name: name.text.to_owned() }));
        }
        if self.parts.types.insert(id, name.text.to_owned()).is_some() {
            return Err(error(number, ParseErrorKind::Redefined { what: "type", name: id.to_string() }));
        }
        Ok(())
    }

    fn bucket(&mut self, type_id: TypeId) -> Result<(), ParseError> {
        let place = self.peek_place();
        let name = self.name("the name of a bucket")?;
        self.expect("{", "{")?;
        let mut id = None;
        let mut alg = None;
        let mut shadow_ids = BTreeMap::new();
        let mut items = Vec::new();
        loop {
            let word = self.next("id, alg, hash, item or }")?;
            match word.text {
                "}" => break,
                "id" => {
                    let given: ItemId = self.number("a bucket id, such as -2")?;
                    let again = match self.optional_class()? {
                        Some(class) => shadow_ids.insert(class, given).is_some(),
                        None => id.replace(given).is_some(),
                    };
                    if again {
                        return Err(error(
                            word.place,
                            ParseErrorKind::Redefined { what: "id", name: given.to_string() },
                        ));
                    }
                }
                "alg" => alg = Some(self.alg()?),
                "hash" => {
                    let hash = self.next("0 (rjenkins1)")?;
                    if !matches!(hash.text, "0" | "rjenkins1") {
                        return Err(unexpected(hash, "0 (rjenkins1), the only hash"));
                    }
                }
                "item" => items.push(self.item()?),
                _ => return Err(unexpected(word, "id, alg, hash, item or }")),
            }
        }
        let alg = alg.ok_or_else(|| unexpected(self.previous(), "alg straw2 or alg uniform before the bucket's }"))?;
        let id = match id {
            Some(id) => id,
            None => self.free_ids.take().map_err(|invalid| error(place, invalid.into()))?,
        };
        if self.items.insert(name.text, id).is_some() {
            return Err(error(place, ParseErrorKind::Redefined { what: "item", name: name.text.to_owned() }));
        }
        let bucket = Bucket { name: name.text.to_owned(), type_id, alg, items: in_position(items)?, shadow_ids };
        if self.parts.buckets.insert(id, bucket).is_some() {
            return Err(error(place, ParseErrorKind::Redefined { what: "bucket id", name: id.to_string() }));
        }
        self.places.insert(Subject::Bucket(id), place);
        Ok(())
    }

    fn alg(&mut self) -> Result<BucketAlg, ParseError> {
        let name = self.next("straw2 or uniform")?;
        match name.text {
            "straw2" => Ok(BucketAlg::Straw2),
            "uniform" => Ok(BucketAlg::Uniform),
            "straw" | "list" | "tree" => {
                Err(error(name.place, ParseErrorKind::UnsupportedAlg { name: name.text.to_owned() }))
            }
            _ => Err(unexpected(name, "straw2 or uniform")),
        }
    }

    /// An item, and the position that it asks for.
    fn item(&mut self) -> Result<Placed, ParseError> {
        let name = self.next("the name of an item")?;
        let Some(id) = self.items.get(name.text).copied() else {
            return Err(undefined(name, "item"));
        };
        let default = self.parts.buckets.get(&id).map_or(u64::from(WEIGHT_ONE), Bucket::weight);
        let weight = if self.accept("weight") { self.weight()? } else { u32::try_from(default).unwrap_or(u32::MAX) };
        let place = self.peek_place();
        let position = if self.accept("pos") { Some(self.number("a position")?) } else { None };
        Ok(Placed { item: Item { id, weight }, position, place })
    }

    /// A weight, in the arithmetic of Ceph: to the nearest `float`, times 0x10000, truncated.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bounds are checked before")]
    fn weight(&mut self) -> Result<u32, ParseError> {
        const EXPECTED: &str = "a weight of 0 to less than 65536, such as 1.000";
        let token = self.next(EXPECTED)?;
        let digits = token.text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let weight = token.text.parse::<f32>().ok().map(|weight| weight * WEIGHT_ONE as f32);
        match weight {
            Some(weight) if digits && (0.0..4_294_967_296.0).contains(&weight) => Ok(weight as u32),
            _ => Err(unexpected(token, EXPECTED)),
        }
    }

    fn rule(&mut self) -> Result<(), ParseError> {
        let place = self.peek_place();
        let name = self.name("the name of a rule")?;
        self.expect("{", "{")?;
        let mut rule = Rule {
            name: name.text.to_owned(),
            kind: RuleKind::Replicated,
            min_size: None,
            max_size: None,
            steps: vec![],
        };
        let (mut id, mut kind) = (None, None);
        loop {
            let word = self.next("id, type, min_size, max_size, step or }")?;
            match word.text {
                "}" => break,
                "id" | "ruleset" => id = Some(RuleId(self.number("the number of a rule")?)),
                "type" => kind = Some(self.rule_kind()?),
                "min_size" => rule.min_size = Some(self.number("a pool size")?),
                "max_size" => rule.max_size = Some(self.number("a pool size")?),
                "step" => {
                    let step = self.step()?;
                    rule.steps.push(step);
                }
                _ => return Err(unexpected(word, "id, type, min_size, max_size, step or }")),
            }
        }
        let id = id.ok_or_else(|| unexpected(self.previous(), "id NUMBER before the rule's }"))?;
        rule.kind =
            kind.ok_or_else(|| unexpected(self.previous(), "type replicated or type erasure before the rule's }"))?;
        if self.parts.rules.values().any(|other| other.name == rule.name) {
            return Err(error(place, ParseErrorKind::Redefined { what: "rule", name: rule.name }));
        }
        if self.parts.rules.insert(id, rule).is_some() {
            return Err(error(place, ParseErrorKind::Redefined { what: "rule", name: id.to_string() }));
        }
        self.places.insert(Subject::Rule(id), place);
        Ok(())
    }

    fn rule_kind(&mut self) -> Result<RuleKind, ParseError> {
        let kind = self.next("replicated or erasure")?;
        match kind.text {
            "replicated" => Ok(RuleKind::Replicated),
            "erasure" => Ok(RuleKind::Erasure),
            _ => Err(unexpected(kind, "replicated or erasure")),
        }
    }

    fn step(&mut self) -> Result<Step, ParseError> {
        const EXPECTED: &str = "take, choose, chooseleaf, emit, set_choose_tries or set_chooseleaf_tries";
        let word = self.next(EXPECTED)?;
        match word.text {
            "take" => {
                let name = self.next("the name of an item")?;
                let item = self.items.get(name.text).copied().ok_or_else(|| undefined(name, "item"))?;
                let class = self.peek_second();
                let known = self.parts.classes.len();
                let chosen = self.optional_class()?;
                match class {
                    Some(class) if self.parts.classes.len() > known => Err(undefined(class, "device class")),
                    _ => Ok(Step::Take { item, class: chosen }),
                }
            }
            "choose" => self.choose(false),
            "chooseleaf" => self.choose(true),
            "emit" => Ok(Step::Emit),
            "set_choose_tries" => Ok(Step::SetChooseTries(self.number("a number of tries")?)),
            "set_chooseleaf_tries" => Ok(Step::SetChooseleafTries(self.number("a number of tries")?)),
            other => {
                let Some(tunable) = FixedTunable::ALL.into_iter().find(|tunable| tunable.step_name() == other) else {
                    return Err(unexpected(word, EXPECTED));
                };
                let value = self.number("the step's value")?;
                self.require(word, value, tunable.value())?;
                Ok(Step::Restate(tunable))
            }
        }
    }

    fn choose(&mut self, leaf: bool) -> Result<Step, ParseError> {
        let mode = self.next("firstn or indep")?;
        let mode = match mode.text {
            "firstn" => ChooseMode::Firstn,
            "indep" => ChooseMode::Indep,
            _ => return Err(unexpected(mode, "firstn or indep")),
        };
        let count = self.number("how many to choose")?;
        self.expect("type", "type NAME")?;
        let name = self.next("the name of a type")?;
        let type_id = self.parts.type_named(name.text).ok_or_else(|| undefined(name, "type"))?;
        Ok(Step::Choose { mode, count, type_id, leaf })
    }

    fn next(&mut self, expected: &'static str) -> Result<Token<'a>, ParseError> {
        let token = self.tokens.get(self.position).copied();
        self.position += 1;
        token.ok_or_else(|| error(self.end, ParseErrorKind::UnexpectedEnd { expected }))
    }

    /// The last token that was read; the end when none was.
    fn previous(&self) -> Token<'a> {
        let token = self.position.checked_sub(1).and_then(|position| self.tokens.get(position)).copied();
        token.unwrap_or(Token { text: "", place: self.end })
    }

    fn peek_place(&self) -> Place {
        self.tokens.get(self.position).map_or(self.end, |token| token.place)
    }

    fn peek_second(&self) -> Option<Token<'a>> {
        self.tokens.get(self.position + 1).copied()
    }

    fn accept(&mut self, word: &str) -> bool {
        let there = self.tokens.get(self.position).is_some_and(|token| token.text == word);
        self.position += usize::from(there);
        there
    }

    fn expect(&mut self, word: &str, expected: &'static str) -> Result<(), ParseError> {
        let token = self.next(expected)?;
        if token.text == word { Ok(()) } else { Err(unexpected(token, expected)) }
    }

    fn name(&mut self, expected: &'static str) -> Result<Token<'a>, ParseError> {
        let token = self.next(expected)?;
        if is_name(token.text) { Ok(token) } else { Err(unexpected(token, expected)) }
    }

    fn number<T: std::str::FromStr>(&mut self, expected: &'static str) -> Result<T, ParseError> {
        let token = self.next(expected)?;
        token.text.parse().map_err(|_| unexpected(token, expected))
    }
}

/// An item with the position that the text asks for.
struct Placed {
    item: Item,
    position: Option<usize>,
    place: Place,
}

/// Puts the items with a position there, and the others, in order, into what is left.
fn in_position(items: Vec<Placed>) -> Result<Vec<Item>, ParseError> {
    let size = items.len();
    let mut slots: Vec<Option<Item>> = vec![None; size];
    for placed in &items {
        let Some(position) = placed.position else { continue };
        match slots.get_mut(position) {
            Some(slot @ None) => *slot = Some(placed.item),
            _ => return Err(error(placed.place, ParseErrorKind::BadPosition { position, size })),
        }
    }
    let mut rest = items.iter().filter(|placed| placed.position.is_none()).map(|placed| placed.item);
    Ok(slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect())
}

fn error(place: Place, kind: ParseErrorKind) -> ParseError {
    ParseError { line: place.line, column: place.column, kind }
}

fn unexpected(token: Token<'_>, expected: &'static str) -> ParseError {
    error(token.place, ParseErrorKind::Unexpected { expected, found: token.text.to_owned() })
}

fn undefined(token: Token<'_>, what: &'static str) -> ParseError {
    error(token.place, ParseErrorKind::Undefined { what, name: token.text.to_owned() })
}

//! Every scorer that configs can name, made up by serde: no list of examples can forget one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use mope_eval::rewards::Scorer;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde_json::Value;

/// Names that older files may use, and today's.
const OLD_NAMES: [(&str, &str); 1] = [("Whole", "CompleteSentences")];

/// Fields whose texts are no paths, and scorers that have none.
const NO_PATHS: [&str; 2] = ["label", "Endpoint"];

/// What a path or another text is filled with.
const FOLDER: &str = "models/example";

#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Makes up a value of any type: 1 for numbers, [`FOLDER`] for texts, one element for lists, something for options.
/// Of enums it takes `variant`, and `Model` for those inside, or the first where there is none; where nothing is known
/// of the type, a list of one text.
#[derive(Clone, Copy)]
struct MadeUp<'a> {
    variant: &'a str,
    /// Every variant that the outermost enum has.
    variants: &'a RefCell<Vec<&'static str>>,
    /// It is an element of a list.
    listed: bool,
}

impl MadeUp<'_> {
    fn inside(self) -> Self {
        Self {
            variant: "Model",
            ..self
        }
    }
}

impl<'de> Deserializer<'de> for MadeUp<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.listed {
            true => self.deserialize_string(visitor),
            false => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_bool(true)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_u32(1)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_u64(1)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_f32(1.0)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_f64(1.0)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_str(FOLDER)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_tuple(1, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let listed = true;
        let element = Self {
            listed,
            ..self.inside()
        };
        visitor.visit_seq(Elements(element, length))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let listed = false;
        let field = Self {
            listed,
            ..self.inside()
        };
        visitor.visit_map(Fields(field, fields))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if self.variants.borrow().is_empty() {
            *self.variants.borrow_mut() = variants.to_vec();
        } else if !variants.contains(&self.variant) {
            let variant = variants[0];
            return visitor.visit_enum(Self { variant, ..self });
        }
        visitor.visit_enum(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 u8 u16 char str bytes byte_buf unit unit_struct map identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for MadeUp<'_> {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Failure> {
        let name = StrDeserializer::<Failure>::new(self.variant);
        Ok((seed.deserialize(name)?, self.inside()))
    }
}

impl<'de> VariantAccess<'de> for MadeUp<'_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Failure> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_struct("", fields, visitor)
    }
}

/// Made-up elements, and how many are left.
struct Elements<'a>(MadeUp<'a>, usize);

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failure> {
        if self.1 == 0 {
            return Ok(None);
        }
        self.1 -= 1;
        seed.deserialize(self.0).map(Some)
    }
}

/// Made-up fields, and the names of those that are left.
struct Fields<'a>(MadeUp<'a>, &'static [&'static str]);

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failure> {
        let Some((name, rest)) = self.1.split_first() else {
            return Ok(None);
        };
        self.1 = rest;
        seed.deserialize(StrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        seed.deserialize(self.0)
    }
}

/// The scorer of that name over reward models, and the names of all.
fn made_up(variant: &str) -> (Result<Scorer, Failure>, Vec<&'static str>) {
    let variants = RefCell::default();
    let value = MadeUp {
        variant,
        variants: &variants,
        listed: false,
    };
    (Scorer::deserialize(value), variants.into_inner())
}

/// Every scorer, each over reward models where it can be.
fn all() -> Vec<Scorer> {
    let (_, names) = made_up("Style");
    let today = names
        .iter()
        .filter(|name| !OLD_NAMES.iter().any(|(old, _)| old == *name));
    today
        .map(|name| made_up(name).0.unwrap_or_else(|e| panic!("{name}: {e}")))
        .collect()
}

/// Texts of a value, in order.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::Object(fields) => {
            let paths = fields
                .iter()
                .filter(|(name, _)| !NO_PATHS.contains(&name.as_str()));
            paths.flat_map(|(_, value)| texts(value)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// The paths that a scorer shows when it is written.
fn written(scorer: &Scorer) -> Vec<PathBuf> {
    let value = serde_json::to_value(scorer).unwrap_or_default();
    let paths = texts(&value).into_iter().filter(|t| t.contains('/'));
    paths.map(PathBuf::from).collect()
}

#[test]
fn every_scorer_names_all_of_its_models() {
    let all = all();
    assert!(all.len() >= 11, "{all:?}");
    let names: BTreeSet<String> = all
        .iter()
        .map(|s| format!("{s:?}").split(['(', ' ']).take(1).collect())
        .collect();
    assert_eq!(names.len(), all.len(), "{names:?}");
    for scorer in all {
        let paths = written(&scorer);
        assert_eq!(scorer.models(), paths, "{scorer:?}");
        let mut resolved = scorer.clone();
        resolved.resolve(Path::new("/beside"));
        let beside: Vec<PathBuf> = paths.iter().map(|p| Path::new("/beside").join(p)).collect();
        assert_eq!(written(&resolved), beside, "{scorer:?}");
        let mut emptied = scorer.clone();
        assert_eq!(emptied.take_models(), paths);
        assert_eq!(written(&emptied), Vec::<PathBuf>::new(), "{emptied:?}");
        // A model that is not there is found before hours are spent, wherever it stands; so is what is no address.
        let missing = !paths.is_empty() || matches!(scorer, Scorer::Endpoint(_));
        assert_eq!(scorer.validate().is_err(), missing, "{scorer:?}");
        let nothing = scorer == Scorer::Judged;
        assert_eq!(scorer.open().is_err(), missing || nothing, "{scorer:?}");
        let text = serde_json::to_string(&scorer).unwrap_or_default();
        let again: Option<Scorer> = serde_json::from_str(&text).ok();
        assert_eq!(again, Some(scorer));
    }
}

#[test]
fn old_names_are_read_and_todays_are_written() {
    for (old, new) in OLD_NAMES {
        let read: Option<Scorer> = made_up(old).0.ok();
        assert_eq!(read, made_up(new).0.ok());
        let text = read.map(|scorer| serde_json::to_string(&scorer).unwrap_or_default());
        assert!(text.is_some_and(|t| t.contains(new) && !t.contains(old)));
    }
}

//! The API's description (OpenAPI 3.1), made of the very types that handlers take and give.
//!
//! A handler is a function of extractors. Each of them says what it takes of a request and how it
//! may refuse it ([`Takes`]), the answer says what it looks like ([`Gives`]); so the document
//! cannot say anything else than the code does.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use chatring_wire::ErrorCode;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::problem::{Problem, ProblemBody, status_of};

/// What an extractor takes of a request.
pub(super) trait Takes {
    /// Says so.
    fn describe(operation: &mut Operation<'_>);
}

/// What a handler answers.
pub(super) trait Gives {
    /// Says so.
    fn describe(operation: &mut Operation<'_>);
}

/// A handler with these extractors, described.
pub(super) trait Described<T> {
    /// Says what it takes and gives.
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! described {
    ($($taken:ident),*) => {
        impl<F, R, A, $($taken),*> Described<($($taken,)*)> for F
        where
            F: Fn($($taken),*) -> R,
            R: Future<Output = A>,
            A: Gives,
            $($taken: Takes,)*
        {
            fn describe(operation: &mut Operation<'_>) {
                $($taken::describe(operation);)*
                A::describe(operation);
            }
        }
    };
}
described!();
described!(T1);
described!(T1, T2);
described!(T1, T2, T3);
described!(T1, T2, T3, T4);
described!(T1, T2, T3, T4, T5);

impl<S> Takes for State<S> {
    fn describe(_: &mut Operation<'_>) {}
}

impl<A: Gives> Gives for Result<A, Problem> {
    fn describe(operation: &mut Operation<'_>) {
        A::describe(operation);
    }
}

/// For what is not part of the API and so not in its description.
impl Gives for Response {
    fn describe(_: &mut Operation<'_>) {}
}

/// One method of one path, while it is described.
pub(super) struct Operation<'g> {
    generator: &'g mut SchemaGenerator,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: BTreeMap<u16, Value>,
    errors: BTreeSet<u16>,
    signed_in: bool,
}

/// Where a parameter stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum In {
    Path,
    Query,
}

impl Operation<'_> {
    /// The request needs a token.
    pub(super) fn needs_token(&mut self) {
        self.signed_in = true;
        let auth = [ErrorCode::InvalidToken, ErrorCode::ExpiredToken, ErrorCode::RevokedToken];
        self.fails(&auth);
    }

    /// The request may be refused so.
    pub(super) fn fails(&mut self, codes: &[ErrorCode]) {
        self.errors.extend(codes.iter().map(|code| code.number()));
    }

    /// Each field of `T` is a parameter.
    pub(super) fn parameters<T: JsonSchema>(&mut self, stand: In) {
        let schema = T::json_schema(self.generator);
        let required: BTreeSet<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, schema) in properties.into_iter().flatten() {
            let mut schema = schema.clone();
            let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            without_null(&mut schema);
            let stands = match stand {
                In::Path => "path",
                In::Query => "query",
            };
            self.parameters.push(json!({
                "name": name,
                "in": stands,
                "required": required.contains(name.as_str()),
                "description": about,
                "schema": schema,
            }));
        }
    }

    /// A header that the request may carry.
    pub(super) fn header(&mut self, name: &str, about: &str, schema: &Value) {
        self.parameters.push(json!({
            "name": name,
            "in": "header",
            "required": false,
            "description": about,
            "schema": schema,
        }));
    }

    /// The request has this body.
    pub(super) fn body<T: JsonSchema>(&mut self) {
        let schema = self.generator.subschema_for::<T>();
        self.body = Some(json!({
            "required": true,
            "content": { "application/json": { "schema": schema } },
        }));
    }

    /// Has a type among the schemas that no body names.
    pub(super) fn known<T: JsonSchema>(&mut self) {
        self.generator.subschema_for::<T>();
    }

    /// An answer in JSON.
    pub(super) fn answer<T: JsonSchema>(&mut self, status: u16, about: &str) {
        let schema = self.generator.subschema_for::<T>();
        self.answer_as(status, about, Some(("application/json", schema)));
    }

    /// An answer of another type, or without a body.
    pub(super) fn answer_as(&mut self, status: u16, about: &str, content: Option<(&str, Schema)>) {
        let mut answer = json!({ "description": about });
        if let Some((kind, schema)) = content {
            answer["content"] = json!({ kind: { "schema": schema } });
        }
        self.answers.insert(status, answer);
    }

    fn finish(mut self, about: &About) -> Value {
        let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
        let everywhere = [
            ErrorCode::Malformed,
            ErrorCode::Invalid,
            ErrorCode::Busy,
            ErrorCode::Unavailable,
            ErrorCode::Draining,
            ErrorCode::Internal,
        ];
        self.fails(&everywhere);
        for code in ErrorCode::ALL.iter().filter(|code| self.errors.contains(&code.number())) {
            by_status.entry(status_of(*code).as_u16()).or_default().push(code.name());
        }
        for (status, names) in by_status {
            let problem = json!({ "$ref": "#/components/schemas/Problem" });
            let answer = json!({
                "description": names.join(", "),
                "content": { "application/problem+json": { "schema": problem } },
            });
            self.answers.entry(status).or_insert(answer);
        }
        // Told by the connection itself, before anybody knows which endpoint it is for.
        let too_large = json!({ "description": "the head is too large; no body" });
        self.answers.entry(431).or_insert(too_large);
        let answers: Map<String, Value> =
            self.answers.into_iter().map(|(status, answer)| (status.to_string(), answer)).collect();
        let mut operation = json!({
            "operationId": about.id,
            "summary": about.summary,
            "tags": [about.tag],
            "responses": answers,
            "security": if self.signed_in { json!([{ "bearer": [] }]) } else { json!([]) },
        });
        if !self.parameters.is_empty() {
            operation["parameters"] = Value::Array(self.parameters);
        }
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        operation
    }
}

/// Texts have no null: who has nothing to say leaves the parameter out.
fn without_null(schema: &mut Value) {
    let Some(Value::Array(kinds)) = schema.get_mut("type") else { return };
    kinds.retain(|kind| kind != "null");
    if let [kind] = kinds.as_slice() {
        schema["type"] = kind.clone();
    }
}

/// What only a person can say of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    /// Name of the operation, for generated clients.
    pub id: &'static str,
    /// Heading under which it is shown.
    pub tag: &'static str,
    /// One line.
    pub summary: &'static str,
}

/// The description of the whole API, while it is made.
pub(super) struct Description {
    generator: SchemaGenerator,
    paths: BTreeMap<String, Map<String, Value>>,
}

impl Description {
    pub(super) fn new() -> Description {
        let mut settings = SchemaSettings::draft2020_12();
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        Description { generator: settings.into_generator(), paths: BTreeMap::new() }
    }

    /// Adds a method (in lower case) of a path.
    pub(super) fn add(
        &mut self,
        method: &str,
        path: &str,
        about: &About,
        describe: impl FnOnce(&mut Operation<'_>),
    ) {
        let mut operation = Operation {
            generator: &mut self.generator,
            parameters: Vec::new(),
            body: None,
            answers: BTreeMap::new(),
            errors: BTreeSet::new(),
            signed_in: false,
        };
        describe(&mut operation);
        let described = operation.finish(about);
        self.paths.entry(path.to_owned()).or_default().insert(method.to_owned(), described);
    }

    /// The document.
    pub(super) fn finish(mut self) -> Value {
        self.generator.subschema_for::<ProblemBody<'_>>();
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Chatring",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "The HTTP API of Chatring. Ids are strings; seq, ordinals and times \
                    (Unix, in milliseconds) are numbers below 2^53.",
                "license": { "name": "MIT OR Apache-2.0" },
            },
            "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
            "paths": self.paths,
            "components": {
                "schemas": self.generator.take_definitions(true),
                "securitySchemes": {
                    "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
                },
            },
        })
    }
}

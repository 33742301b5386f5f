//! Requests as bytes. `head` are the header lines that a user sends with each of them.

/// The header lines of a user with this token.
pub fn head(token: &str) -> String {
    format!("host: loadgen\r\nauthorization: Bearer {token}\r\n")
}

/// Asks for a path.
pub fn get(path: &str, head: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{head}\r\n")
}

/// Posts JSON, with further header lines.
pub fn post(path: &str, head: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\n{head}{header}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// Asks for the direct channel with a user of the deployment.
pub fn open_channel(with: &str, head: &str) -> String {
    let with = format!(r#"{{"issuer":"","subject":"{with}"}}"#);
    post("/v1/channels", head, "", &format!(r#"{{"kind":"direct","with_user":{with}}}"#))
}

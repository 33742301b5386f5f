//! Goal: an operator learns what the configuration comes to and what is wrong with it. Method: the
//! real binary with good and bad files.

use crate::common::{chatring, executable, refusal, stdout};

fn with_file(command: &str, text: &str, more: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.toml");
    std::fs::write(&path, text).expect("a file");
    let mut args = vec!["config", command, "--config", path.to_str().expect("text")];
    args.extend(more);
    chatring(&args)
}

#[test]
fn show_prints_a_file_that_check_accepts_and_flags_override_it() {
    let file = "[server]\nshards = 2\nhttp = \"127.0.0.1:9\"\n[limits]\naudit = \"60s\"\n";
    let shown = with_file("show", file, &["--shards", "3", "--data", "/d"]);
    assert!(shown.status.success(), "{shown:?}");
    let text = stdout(&shown);
    let config: toml::Table = text.parse().expect("TOML");
    assert_eq!(config["server"]["shards"].as_integer(), Some(3));
    assert_eq!(config["server"]["data"].as_str(), Some("/d"));
    assert_eq!(config["server"]["http"].as_str(), Some("127.0.0.1:9"));
    assert_eq!(config["server"]["listen"].as_str(), Some("127.0.0.1:7400"));
    assert_eq!(config["limits"]["audit"].as_str(), Some("1m"));
    let checked = with_file("check", text, &[]);
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(stdout(&checked), "ok\n");
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    for (file, message) in [
        ("[server]\nport = 1\n", "c.toml:2: server.port: unknown field"),
        ("[server]\ndriver = \"rings\"\n", "c.toml:2: server.driver: unknown variant `rings`"),
        ("[limits]\naudit = \"soon\"\n", "limits.audit: \"soon\" is no length of time"),
        ("[limits]\nwindow_pushes = 0\n", "limits.window_pushes is 0"),
        ("server = {", "c.toml:1: "),
        (
            "[[auth.issuers]]\nname = \"a\"\n[[auth.issuers.keys]]\n\
             algorithm = \"RS256\"\nfile = \"/missing.pem\"\n",
            "/missing.pem: No such file",
        ),
    ] {
        let output = with_file("check", file, &[]);
        assert!(refusal(&output).contains(message), "{output:?}");
    }
    let output = chatring(&["config", "check", "--config", "/no/such/file.toml"]);
    assert!(refusal(&output).contains("/no/such/file.toml"));
    let output = chatring(&["config", "check", "--shards", "many"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_password_of_the_database_is_shown_to_nobody() {
    let file = "[accounts]\ndatabase = \"postgres://chat:s3cret@127.0.0.1:1/chat\"\n";
    let shown = with_file("show", file, &[]);
    let text = stdout(&shown);
    assert!(text.contains("\"postgres://chat:***@127.0.0.1:1/chat\""), "{text}");
    let wrong = file.replace("postgres:", "mysql:");
    assert!(!refusal(&with_file("check", &wrong, &[])).contains("s3cret"));
    // Nor by a server that cannot reach it, however much it logs.
    let folder = tempfile::tempdir().expect("a folder");
    for file in [file.to_owned(), file.replace(":1/", ":port/")] {
        let path = folder.path().join("c.toml");
        std::fs::write(&path, file).expect("a file");
        let mut serve = std::process::Command::new(executable());
        serve.arg("serve").arg("--config").arg(&path).arg("--data").arg(folder.path().join("data"));
        serve.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1"]);
        let output = serve.env("CHATRING_LOG", "trace").output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(log.contains("chatring: accounts"), "{log}");
        assert!(!log.contains("s3cret"), "{log}");
    }
}

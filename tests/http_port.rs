//! Goal: the HTTP API answers the same at its own address and at that of the WebSocket, where it
//! tells nothing of the operator's. Method: the real binary, kept-alive connections to both.

use std::time::Duration;

use serde_json::json;

use crate::common::{Bystanders, Http, Node, figure};

#[test]
fn both_addresses_serve_the_api_and_one_of_them_the_operator() {
    let mut node = Node::start();
    let bystanders = Bystanders::start(&node);
    let token = node.token("alice");
    for (url, operator) in [(node.http(), 200), (node.ws(), 404)] {
        let mut http = Http::connect(url).token(&token);
        for _ in 0..3 {
            let me = http.get("/v1/me");
            assert_eq!((me.status, me.json["subject"].as_str()), (200, Some("alice")), "{me:?}");
        }
        assert_eq!(http.get("/v1/nodes").json["nodes"][0]["ws"], node.ws());
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert_eq!(http.get(path).status, operator, "{url} {path}");
        }
        assert_eq!(http.get("/v1/openapi.json").json["openapi"], "3.1.0");
        let mut nobody = Http::connect(url);
        assert_eq!(nobody.get("/v1/me").problem(), "invalid_token");
        let none = nobody.post("/v1/none", &json!({ "a": "b" }));
        assert_eq!((none.status, none.problem()), (404, "not_found"));
        assert!(none.head.contains("content-type: application/problem+json"), "{none:?}");
    }
    // A head in pieces, and a request behind another.
    let mut slow = Http::connect(node.ws());
    for piece in ["GET /v1/no", "ne HTTP/1.1\r\nhost: x\r", "\n\r\nGET /v1/me HTTP/1.1\r\n\r\n"] {
        slow.write(piece.as_bytes());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(slow.answer().problem(), "not_found");
    assert_eq!(slow.answer().problem(), "invalid_token");
    assert!(figure(&node, "chatring_gateway_http_handed_total") >= 3.0);
    bystanders.check();
    drop(bystanders);

    // Idle connections do not hold up the end.
    assert!(node.stop().success());
    assert_eq!(slow.line(), "");
}

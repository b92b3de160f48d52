"""`dosql sql`: one statement, a script on standard input, and the interactive shell."""

import csv
import io
import json
import os

import pexpect
import pytest
from server import program


@pytest.fixture(scope="module", autouse=True)
def table(server):
    server.sql("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL, photo BLOB)")
    for row in [(1, 'a "quoted", name', 1.0, None), (2, "two\nlines", 0.1, b"\x00\xff"), (9007199254740993, "", None, b"")]:
        server.sql("INSERT INTO items VALUES (?, ?, ?, ?)", *row)


SELECT = "SELECT id, name, price FROM items ORDER BY id"


def test_csv(server):
    done = server.shell("--format", "csv", SELECT)
    assert done.returncode == 0 and done.stderr == ""
    assert list(csv.reader(io.StringIO(done.stdout, newline=""))) == [
        ["id", "name", "price"], ["1", 'a "quoted", name', "1.0"], ["2", "two\nlines", "0.1"], ["9007199254740993", "", ""],
    ]


def test_json(server):
    done = server.shell("--format", "json", SELECT)
    assert done.returncode == 0
    assert json.loads(done.stdout) == [
        {"id": 1, "name": 'a "quoted", name', "price": 1.0},
        {"id": 2, "name": "two\nlines", "price": 0.1},
        {"id": 9007199254740993, "name": "", "price": None},
    ]
    photos = server.shell("--format", "json", "SELECT photo FROM items WHERE id = 2")
    assert json.loads(photos.stdout) == [{"photo": {"base64": "AP8="}}]


def test_a_table(server):
    done = server.shell("--format", "table", "SELECT id, price FROM items WHERE id < 3 ORDER BY id")
    assert done.returncode == 0
    for word in ("id", "price", "1.0", "0.1"):
        assert word in done.stdout


def test_a_script_on_standard_input(server):
    script = """
        -- statements may span lines; a semicolon may stand in a text
        CREATE TABLE scripted (id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO scripted VALUES (1, 'one; and
        more'), (2, 'it''s');
        SELECT name FROM scripted ORDER BY id
    """
    done = server.shell("--format", "csv", input=script)
    assert done.returncode == 0, done.stderr
    assert "it's" in done.stdout and "one; and" in done.stdout


def test_exit_codes(server):
    bad = server.shell("SELECT * FROM nowhere")
    assert bad.returncode == 1 and "UNKNOWN_TABLE" in bad.stderr and "nowhere" in bad.stderr and bad.stdout == ""
    stopped = server.shell(input="SELECT 1;\nSELEC 2;\nSELECT 3;\n")
    assert stopped.returncode == 1 and "SYNTAX_ERROR" in stopped.stderr and "3" not in stopped.stdout
    assert server.run("sql", "--format", "yaml", "SELECT 1").returncode == 2
    gone = server.run("sql", "--url", "http://127.0.0.1:1", "SELECT 1")
    assert gone.returncode == 1 and "127.0.0.1:1" in gone.stderr


def test_the_interactive_shell_and_its_history(server, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "NO_COLOR": "1"}
    arguments = ["sql", "--url", server.url]

    shell = pexpect.spawn(str(program()), arguments, env=environment, encoding="utf-8", timeout=20, dimensions=(40, 200))
    shell.expect("dosql> ")
    shell.sendline("SELECT 40 + 2 AS answer;")
    shell.expect("answer")
    shell.expect("42")
    shell.expect("dosql> ")
    shell.sendline("SELECT missing FROM items;")
    shell.expect("UNKNOWN_COLUMN")
    shell.expect("dosql> ")
    shell.sendline("SELECT 'over two")
    shell.sendline("lines' AS said;")
    shell.expect("said")
    shell.expect("dosql> ")
    shell.sendeof()
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0

    again = pexpect.spawn(str(program()), arguments, env=environment, encoding="utf-8", timeout=20, dimensions=(40, 200))
    again.expect("dosql> ")
    for _ in range(4):  # up past later statements to the first
        again.send("\x1b[A")
    again.expect("SELECT 40")
    again.sendcontrol("c")
    again.expect("\r\n.*dosql> ")
    again.sendeof()
    again.expect(pexpect.EOF)


def test_grpc_is_answered_on_the_http_port_too(server):
    done = server.run("sql", "--url", f"http://{server.http_address}", "--format", "csv", "SELECT 1 AS one")
    assert (done.returncode, done.stdout) == (0, "one\n1\n"), done.stderr


def test_import_reports_what_is_wrong(server, tmp_path):
    missing = server.run("import", str(tmp_path / "none.csv"), "--table", "t", "--url", server.url)
    assert missing.returncode == 1 and "none.csv" in missing.stderr
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("a,b\n1,2\n3\n")
    bad = server.run("import", str(ragged), "--table", "ragged", "--url", server.url)
    assert bad.returncode == 1 and "3" in bad.stderr


def test_import_infers_types(server, tmp_path):
    file = tmp_path / "typed.csv"
    file.write_text('id,price,name,empty\n1,1.5,"a ""b"", c",NA\n9223372036854775807,2,007,NA\n')
    done = server.run("import", str(file), "--table", "typed", "--shard-by", "id", "--null", "NA", "--url", server.url)
    assert done.returncode == 0, done.stderr
    rows = server.rows("SELECT id, price, name, empty FROM typed ORDER BY id")
    assert rows == [(1, 1.5, 'a "b", c', None), (9223372036854775807, 2.0, "007", None)]
    assert [type(value) for value in rows[1]][:3] == [int, float, str]

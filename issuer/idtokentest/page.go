package idtokentest

import (
	"html/template"
	"net/http"
)

// page is a form, or only a message.
type page struct {
	Title   string
	Message string
	Action  string
	Email   string
	AskCode bool
	Code    string
	Hidden  map[string]string
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 22rem; margin: 12vh auto; padding: 0 1rem; }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit; }
input, button { padding: .5rem; margin: .25rem 0 1rem; }
</style>
</head>
<body>
<h1>{{.Title}}</h1>
{{with .Message}}<p>{{.}}</p>{{end}}
{{if .Action}}
<p>This provider stands in for a real one: whoever names an address is that person.</p>
<form method="post" action="{{.Action}}">
{{range $name, $value := .Hidden}}<input type="hidden" name="{{$name}}" value="{{$value}}">
{{end}}
{{if .AskCode}}<label for="user_code">Code</label>
<input id="user_code" name="user_code" value="{{.Code}}" autocomplete="off" required>
{{end}}
<label for="email">E-mail</label>
<input id="email" name="email" type="email" value="{{.Email}}" autocomplete="username" required>
<button id="sign-in" name="answer" value="allow">Sign in</button>
<button id="deny" name="answer" value="deny" formnovalidate>Deny</button>
</form>
{{end}}
</body>
</html>
`))

func showPage(w http.ResponseWriter, status int, p page) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'")
	w.WriteHeader(status)
	_ = pageTemplate.Execute(w, p)
}

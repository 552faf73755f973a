package tokensource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// LoginStore stores a person's logins in a file, one for each mayfly issuer. The
// file has mode 0600 in a 0700 directory. A file that others may read is refused.
type LoginStore struct{ Path string }

// StoredLogin is one login in a LoginStore. IDToken is a secret.
type StoredLogin struct {
	Provider  string    `json:"provider"` // its name in the issuer's policy
	Issuer    string    `json:"issuer"`   // of the ID token
	ClientID  string    `json:"client_id"`
	Subject   string    `json:"subject"`
	IDToken   string    `json:"id_token"`
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
	// CAFile and TrustAnchor are the settings that verified the mayfly issuer at
	// the login. They are empty if the system's roots were enough.
	CAFile      string `json:"ca_file,omitempty"`
	TrustAnchor string `json:"trust_anchor,omitempty"`
}

// Errors of Find.
var (
	ErrNoLogin      = errors.New("not logged in")
	ErrLoginExpired = errors.New("the login has expired")
)

const maxLoginFile = 1 << 20

// Find returns the login for a mayfly issuer. Its errors are ErrNoLogin,
// ErrLoginExpired, and those of a file that cannot be read or trusted.
func (s LoginStore) Find(issuer string, now time.Time) (*StoredLogin, error) {
	all, err := s.read()
	if err != nil {
		return nil, err
	}
	l, ok := all[issuer]
	if !ok {
		return nil, ErrNoLogin
	}
	if !now.Before(l.ExpiresAt) {
		return nil, fmt.Errorf("%w at %s", ErrLoginExpired, l.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return &l, nil
}

// Latest returns the mayfly issuer of the most recent login, and that login, which
// may have expired. Its errors are ErrNoLogin, and those of a file that cannot be
// read or trusted.
func (s LoginStore) Latest() (string, *StoredLogin, error) {
	all, err := s.read()
	if err != nil {
		return "", nil, err
	}
	latest := ""
	for issuer, l := range all {
		if latest == "" || l.IssuedAt.After(all[latest].IssuedAt) {
			latest = issuer
		}
	}
	if latest == "" {
		return "", nil, ErrNoLogin
	}
	l := all[latest]
	return latest, &l, nil
}

// Save stores l for a mayfly issuer, replaces an earlier login, and removes expired
// logins. It replaces the file atomically.
func (s LoginStore) Save(issuer string, l StoredLogin, now time.Time) error {
	all, err := s.read()
	if err != nil {
		return err
	}
	for k, old := range all {
		if !now.Before(old.ExpiresAt) {
			delete(all, k)
		}
	}
	all[issuer] = l
	return s.write(all)
}

// Remove removes the login for a mayfly issuer and reports whether there was one.
func (s LoginStore) Remove(issuer string) (bool, error) {
	all, err := s.read()
	if err != nil {
		return false, err
	}
	if _, ok := all[issuer]; !ok {
		return false, nil
	}
	delete(all, issuer)
	return true, s.write(all)
}

func (s LoginStore) read() (map[string]StoredLogin, error) {
	f, err := os.Open(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]StoredLogin{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stored login: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stored login: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("stored login: %s has mode %v; others must not read it (chmod 600)", s.Path, fi.Mode())
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxLoginFile+1))
	if err != nil {
		return nil, fmt.Errorf("stored login: %w", err)
	}
	if len(raw) > maxLoginFile {
		return nil, fmt.Errorf("stored login: %s is over %d bytes", s.Path, maxLoginFile)
	}
	all := map[string]StoredLogin{}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("stored login: %s: %w", s.Path, err)
	}
	if all == nil { // the file contains null
		all = map[string]StoredLogin{}
	}
	return all, nil
}

func (s LoginStore) write(all map[string]StoredLogin) error {
	dir := filepath.Dir(s.Path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("store login: %w", err)
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("store login: %w", err)
	}
	f, err := os.CreateTemp(dir, ".login-*") // mode 0600
	if err != nil {
		return fmt.Errorf("store login: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("store login: %w", err)
	}
	if err := os.Rename(f.Name(), s.Path); err != nil {
		return fmt.Errorf("store login: %w", err)
	}
	return nil
}

// LoginSource returns the token of a stored login and reads it again for each call.
// A person's token is for the provider's client ID, so the requested audience does
// not change it.
type LoginSource struct {
	Store  LoginStore
	Issuer string // the mayfly issuer
}

// Token returns the stored ID token.
func (s LoginSource) Token(_ context.Context, _ string) (string, error) {
	l, err := s.Store.Find(s.Issuer, time.Now())
	if err != nil {
		return "", &Error{Source: s.String(), Hint: "run mayfly login", Err: err}
	}
	return l.IDToken, nil
}

// String returns a readable name of the source.
func (s LoginSource) String() string { return "stored login" }

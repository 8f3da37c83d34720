// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// An answer is believed for as long as rememberYes; a refusal, after which a
	// new role may be tried, rememberNo.
	rememberYes, rememberNo = time.Minute, 5 * time.Second
	// remembered bounds the answers that are kept: tokens cost nothing to make up.
	remembered = 1024
	// asked bounds the questions a second that unknown tokens can cause, and atOnce
	// those that are open.
	asked, atOnce = 5, 4
	// reviewTimeout bounds one question, with the time that it waits for others.
	reviewTimeout = 5 * time.Second
)

// Authorized lets those alone pass who bring a bearer token that the API server
// knows, of somebody whom its authorizer allows to get one path (nonResourceURLs of
// a ClusterRole), whatever path they ask for: Kubernetes lets everybody get
// /healthz, /livez and /readyz (system:public-info-viewer), where more may stand
// here. Others get 401 or 403; 429 while too many unknown tokens have come, 503
// while the API server is not reached. It needs the right to create TokenReviews and
// SubjectAccessReviews, as system:auth-delegator gives.
func Authorized(kube kubernetes.Interface, path string, h http.Handler) http.Handler {
	a := authorized(kube, path)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || token == "" {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "send the token of a ServiceAccount that may get "+path+" (Authorization: Bearer)", http.StatusUnauthorized)
			return
		}
		switch code := a.ask(r.Context(), token); code {
		case http.StatusOK:
			h.ServeHTTP(w, r)
		case http.StatusForbidden:
			http.Error(w, "the token's owner may not get "+path+": bind it to a ClusterRole with this path in nonResourceURLs", code)
		default:
			http.Error(w, http.StatusText(code), code)
		}
	})
}

type answer struct {
	code  int
	until time.Time
}

// authorizer is safe for concurrent use.
type authorizer struct {
	kube  kubernetes.Interface
	path  string
	limit *rate.Limiter
	open  chan struct{}

	mu      sync.Mutex
	answers map[[sha256.Size]byte]answer // by the token's hash: what is kept opens nothing
}

func authorized(kube kubernetes.Interface, path string) *authorizer {
	return &authorizer{
		kube: kube, path: path, limit: rate.NewLimiter(asked, 4*asked), open: make(chan struct{}, atOnce),
		answers: map[[sha256.Size]byte]answer{},
	}
}

// ask returns the status code that is the answer.
func (a *authorizer) ask(ctx context.Context, token string) int {
	q, now := sha256.Sum256([]byte(token)), time.Now()
	a.mu.Lock()
	known, ok := a.answers[q]
	a.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.code
	}
	// Who was let in is not kept out by others' guesses.
	if known.code != http.StatusOK && !a.limit.AllowN(now, 1) {
		return http.StatusTooManyRequests
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case a.open <- struct{}{}:
		defer func() { <-a.open }()
	case <-ctx.Done():
		return http.StatusServiceUnavailable
	}
	code, err := a.review(ctx, token)
	if err != nil {
		return http.StatusServiceUnavailable // asked again by the next request
	}
	now = time.Now()
	keep := rememberNo
	if code == http.StatusOK {
		keep = rememberYes
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.answers) >= remembered {
		a.forget(now)
	}
	a.answers[q] = answer{code, now.Add(keep)}
	return code
}

// forget drops what is too old, and everything if that is nothing.
func (a *authorizer) forget(now time.Time) {
	before := len(a.answers)
	for q, known := range a.answers {
		if !now.Before(known.until) {
			delete(a.answers, q)
		}
	}
	if len(a.answers) == before {
		clear(a.answers)
	}
}

func (a *authorizer) review(ctx context.Context, token string) (int, error) {
	who, err := a.kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	if !who.Status.Authenticated {
		return http.StatusUnauthorized, nil
	}
	user := who.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for key, values := range user.Extra {
		extra[key] = authorizationv1.ExtraValue(values)
	}
	may, err := a.kube.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: a.path, Verb: "get"},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	if !may.Status.Allowed {
		return http.StatusForbidden, nil
	}
	return http.StatusOK, nil
}
